"""Bridges to other libraries. Each is optional: nothing else in kdbench imports one."""
