// Loaded before the page is drawn, so that a chosen theme never flashes.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const apply = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  let stored = null;
  try {
    stored = localStorage.getItem("studio-theme");
  } catch {
    /* storage may be closed to us: the system's theme it is */
  }
  apply(stored);
  window.studioTheme = {
    get: () => root.dataset.theme || "system",
    set(theme) {
      apply(theme);
      try {
        if (theme === "system") localStorage.removeItem("studio-theme");
        else localStorage.setItem("studio-theme", theme);
      } catch {
        /* it lasts for this page only */
      }
      root.dispatchEvent(new CustomEvent("studio-theme", { bubbles: true }));
    },
  };
})();
