// What ipywidgets has no traits for: a live region, names of groups and of the slider, Ctrl-Enter, and where the focus goes.
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
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation();
    if (document.activeElement) document.activeElement.dispatchEvent(new Event("change", { bubbles: true }));
    root.querySelector("button.prlhf-generate").click();
  }, true); // on the way down: ipywidgets' text boxes keep what they are typed to themselves
  // A button that is pressed and then disabled, or a card that goes away, would take the focus with it.
  let focused = null;
  root.addEventListener("focusin", (event) => { focused = event.target; });
  root.addEventListener("focusout", ({ target }) => setTimeout(() => { // by then it has gone, if that was the reason
    if (focused === target && target.isConnected && !target.disabled) focused = null;
  }));
  new MutationObserver(() => {
    if (!focused || (focused.isConnected && !focused.disabled)) return;
    if (![null, document.body, focused].includes(document.activeElement)) return;
    const stop = root.querySelector("button.prlhf-stop");
    (stop.disabled ? root.querySelector("button.prlhf-generate") : stop).focus({ preventScroll: true });
  }).observe(root, { subtree: true, childList: true, attributeFilter: ["disabled"] });
})(50);
