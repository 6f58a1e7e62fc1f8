"use strict";
// Copying a text.
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    let done = false;
    try { await navigator.clipboard.writeText(source.textContent); done = true; } catch (error) {
      const range = document.createRange();
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      done = document.execCommand("copy");
    }
    const text = button.textContent;
    button.textContent = done ? "copied" : "select and copy by hand";
    setTimeout(() => { button.textContent = text; }, 1500);
  });
}
// Sorting a table by a column.
for (const table of document.querySelectorAll("table[data-sort]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x !== undefined && y !== undefined && x !== "" && y !== "") return down ? y - x : x - y;
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true });
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}
// Fields: one slider and one choice of sample move all pictures and curves.
const store = document.getElementById("frames");
if (store) {
  const data = JSON.parse(store.textContent);
  const slider = document.getElementById("frame"), choice = document.getElementById("sample");
  const play = document.getElementById("play"), output = document.getElementById("now");
  const last = Math.max(0, data.stops.length - 1);
  let timer = null;
  const pick = (list, k) => list[Math.min(k, list.length - 1)];
  const way = (x, y) => {
    let path = "", pen = "M";
    for (let k = 0; k < x.length; k++) {
      if (y[k] === null) { pen = "M"; continue; }
      path += pen + x[k] + "," + y[k];
      pen = "L";
    }
    return path;
  };
  const show = () => {
    const s = choice ? Number(choice.value) : 0, f = slider ? Number(slider.value) : last;
    const now = data.stops.length ? data.word + " = " + data.stops[f] : "";
    for (const [id, image] of Object.entries(data.images)) {
      const picture = document.getElementById(id);
      picture.src = "data:image/png;base64," + pick(pick(image.src, s), f);
      picture.alt = [image.alt, data.samples > 1 ? "sample " + s : "", now, pick(pick(image.text, s), f)].filter(Boolean).join(", ");
      document.getElementById(id + "-range").textContent = pick(pick(image.text, s), f);
    }
    for (const [id, curve] of Object.entries(data.curves))
      document.getElementById(id).setAttribute("d", way(curve.x, pick(pick(curve.y, s), f)));
    for (const id of data.cursors) {
      const cursor = document.getElementById(id + "-cursor"), at = data.places[f];
      if (cursor.tagName === "line") { cursor.setAttribute("x1", 1000 * at); cursor.setAttribute("x2", 1000 * at); }
      else cursor.style.left = 100 * at + "%";
    }
    if (slider) { output.textContent = now; slider.setAttribute("aria-valuetext", now); }
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "▶ play"; play.setAttribute("aria-pressed", "false"); };
  const start = () => {
    if (Number(slider.value) >= last) slider.value = 0;
    play.textContent = "❚❚ pause";
    play.setAttribute("aria-pressed", "true");
    show();
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) >= last) stop();
    }, Math.max(60, Math.min(400, 6000 / (last + 1))));
  };
  if (slider) {
    slider.addEventListener("input", () => { if (timer) stop(); show(); });
    play.addEventListener("click", () => timer ? stop() : start());
  }
  if (choice) choice.addEventListener("change", show);
  for (const control of document.querySelectorAll(".player [disabled]")) control.disabled = false;
  show();
}
