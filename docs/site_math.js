// Formulas: what arithmatex marks is set by MathJax, in the reader's browser.
window.MathJax = { options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex" } };
