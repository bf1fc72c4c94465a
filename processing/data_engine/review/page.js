// Keys press the buttons. The pair that was on the page when a key or button was pressed goes along with the decision:
// a second press, made before the next pair has come, decides nothing.
(() => {
const keys = {{ keys | tojson }};
const masks = () => {
  const off = document.body.classList.toggle("masks-off");
  try { localStorage.setItem("sam3i-masks-off", off ? "1" : ""); } catch (error) { /* the page works without it */ }
};
window.sam3iMasks = masks;
window.sam3iPair = () => document.querySelector("[data-pair]")?.dataset.pair ?? "";
window.sam3iWords = () => document.querySelector("#words textarea");
try { if (localStorage.getItem("sam3i-masks-off")) document.addEventListener("DOMContentLoaded",
  () => document.body.classList.add("masks-off")); } catch (error) { /* the page works without it */ }
document.addEventListener("keydown", (event) => {
  const words = window.sam3iWords(), field = event.target.closest("input, textarea, select, [contenteditable=true]");
  if (field) {
    if (field !== words) return;
    if (event.key === "Escape") { field.blur(); event.preventDefault(); }
    if (event.key === "Enter") {
      event.preventDefault(); event.stopPropagation();
      if (event.ctrlKey || event.metaKey) document.querySelector("#edit").click();
    }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  const key = event.key.toLowerCase();
  if (key === "m") { masks(); return; }
  const button = keys[key] && document.querySelector("#" + keys[key]);
  if (!button || button.disabled || !button.offsetParent) return;
  event.preventDefault();
  if (keys[key] === "edit") { words.focus(); words.setSelectionRange(words.value.length, words.value.length); return; }
  button.click();
}, true);
})();
