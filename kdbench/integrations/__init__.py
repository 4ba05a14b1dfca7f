"""Plug-ins for other libraries. Each is optional and found by an entry point: nothing else in kdbench imports one."""
