// What pymdownx.arithmatex marked becomes a formula: \(...\) within a line, \[...\] on lines of its own.
for (const element of document.querySelectorAll(".arithmatex")) {
  const source = element.textContent.trim().slice(2, -2);
  katex.render(source, element, { displayMode: element.tagName === "DIV", throwOnError: false });
}
