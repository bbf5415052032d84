// Light or dark: what was chosen here before, otherwise what the system says. A classic script, run before the page.
"use strict";

(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => localStorage.getItem("quire-theme");
  const apply = () => {
    document.documentElement.dataset.theme = chosen() ?? (system.matches ? "dark" : "light");
    document.dispatchEvent(new Event("quire-theme"));
  };
  system.addEventListener("change", apply);
  document.addEventListener("quire-toggle-theme", () => {
    localStorage.setItem("quire-theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    apply();
  });
  apply();
})();
