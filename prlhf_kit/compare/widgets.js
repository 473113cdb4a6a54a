// What ipywidgets has no traits for: a live region, names of groups and of the slider, and Ctrl-Enter.
(function attach(tries) {
  const root = element.closest(".prlhf-compare");
  if (!root) { if (tries) setTimeout(() => attach(tries - 1), 100); return; }
  const name = (selector, attributes) => {
    const node = root.querySelector(selector);
    for (const [key, value] of Object.entries(attributes)) if (node) node.setAttribute(key, value);
  };
  name(".prlhf-status", { role: "status", "aria-live": "polite" });
  name(".prlhf-users", { role: "group", "aria-label": "Users" });
  name(".prlhf-systems", { role: "group", "aria-label": "Systems" });
  name(".prlhf-cards", { role: "region", "aria-label": "Answers" });
  name(".prlhf-weight .noUi-handle", { "aria-label": "PAD weight" });
  // a prompt that was put there goes when one types; what was typed stays
  const prompt = root.querySelector(".prlhf-prompt textarea");
  let typed = false;
  prompt.addEventListener("input", () => { typed = true; });
  root.querySelector(".prlhf-choose select").addEventListener("change", () => { typed = false; });
  prompt.addEventListener("focus", () => { if (!typed) setTimeout(() => prompt.select()); });
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation();
    if (document.activeElement) document.activeElement.dispatchEvent(new Event("change", { bubbles: true }));
    root.querySelector("button.prlhf-generate").click();
  }, true); // on the way down: ipywidgets' text boxes keep what they are typed to themselves
})(50);
