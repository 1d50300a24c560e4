// Runs before the first paint, so that a page in the dark never flashes white.
// "auto" follows the system; the choice is kept in this browser.
(() => {
  const ORDER = ["auto", "light", "dark"];
  const read = () => {
    try {
      return localStorage.getItem("theme") ?? "auto";
    } catch {
      return "auto"; // storage is switched off: the system decides
    }
  };
  const apply = (theme) => {
    document.documentElement.dataset.theme = ORDER.includes(theme) ? theme : "auto";
  };
  apply(read());
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => {
      const theme = document.documentElement.dataset.theme;
      button.setAttribute("aria-label", `Colours: ${theme}. Change`);
      button.title = `Colours: ${theme}`;
    };
    show();
    button.addEventListener("click", () => {
      const now = document.documentElement.dataset.theme;
      const next = ORDER[(ORDER.indexOf(now) + 1) % ORDER.length];
      apply(next);
      show();
      try {
        localStorage.setItem("theme", next);
      } catch {
        // it holds for this page then
      }
    });
  });
})();
