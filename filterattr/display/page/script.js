"use strict";
// The page is complete without this script: it adds sorting, filtering and downloading to tables, and turns rows of
// frames into sliders.

function make(name, properties, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

// --- tables -------------------------------------------------------------------------------------------------------

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}

function compare(first, second) {
  if (typeof first === "number" && typeof second === "number") {
    // what is not a number comes last, whatever the direction: the caller only turns the sign of numbers around
    return first - second;
  }
  return String(first).localeCompare(String(second), "en", { numeric: true });
}

function isNothing(value) {
  return value === "" || Number.isNaN(value);
}

function sortBy(table, column) {
  const headings = [...table.tHead.rows[0].cells];
  const heading = headings[column];
  const descending = heading.getAttribute("aria-sort") === "ascending"
    || (heading.getAttribute("aria-sort") === null && heading.classList.contains("number"));
  headings.forEach((one) => one.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
  rows.sort(([first], [second]) => {
    if (isNothing(first) || isNothing(second)) {
      return isNothing(first) - isNothing(second);
    }
    return descending ? compare(second, first) : compare(first, second);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function quoted(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// a spreadsheet takes a text that begins like this for a formula
function harmless(text) {
  return /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
}

function numberText(text) {
  return text === undefined || text === "nan" ? "" : text;
}

function csvOf(table) {
  const headings = [...table.tHead.rows[0].cells];
  const names = headings.flatMap((heading) => {
    const name = quoted(harmless(heading.textContent));
    return heading.dataset.interval === undefined ? [name] : [name, `${name} low`, `${name} high`];
  });
  const lines = [...table.tBodies[0].rows].map((row) => headings.flatMap((heading, column) => {
    const { value, low, high } = row.cells[column].dataset;
    const text = value === undefined ? quoted(harmless(row.cells[column].textContent)) : numberText(value);
    return heading.dataset.interval === undefined ? [text] : [text, numberText(low), numberText(high)];
  }));
  return [names, ...lines].map((line) => line.join(",")).join("\r\n") + "\r\n";
}

function captionOf(table) {
  return document.getElementById(table.getAttribute("aria-labelledby")).textContent;
}

function download(table) {
  const name = captionOf(table).replace(/[^\p{L}\p{N}]+/gu, "_").slice(0, 60);
  const address = URL.createObjectURL(new Blob(["\ufeff", csvOf(table)], { type: "text/csv" }));
  make("a", { href: address, download: `${name}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function addTools(table) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = make("button", { type: "button" }, ...heading.childNodes);
    button.addEventListener("click", () => sortBy(table, column));
    heading.replaceChildren(button);
  });
  const rows = [...table.tBodies[0].rows];
  const tools = make("div", { className: "tools" });
  if (rows.length > 8) {
    const count = make("span", {}, `${rows.length} rows`);
    count.setAttribute("role", "status");
    const field = make("input", { type: "search" });
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      rows.forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
      const left = rows.filter((row) => !row.hidden).length;
      count.textContent = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
    });
    tools.append(make("label", {}, "Filter ", field), count);
  }
  const save = make("button", { type: "button" }, "Download CSV");
  save.setAttribute("aria-label", `Download CSV: ${captionOf(table)}`);
  save.addEventListener("click", () => download(table));
  tools.append(save);
  table.parentElement.before(tools);
}

// --- sliders ------------------------------------------------------------------------------------------------------

function addSlider(panel, place) {
  const frames = [...panel.querySelectorAll(".frame")];
  const start = frames.findIndex((frame) => frame.dataset.start !== undefined);
  const id = `dial${place}`;
  const input = make("input", { type: "range", id, min: 0, max: frames.length - 1, step: 1, value: start });
  const shown = make("output", {});
  shown.setAttribute("for", id);
  const show = () => {
    frames.forEach((frame, index) => frame.classList.toggle("shown", index === Number(input.value)));
    shown.textContent = frames[input.value].dataset.strength;
    input.setAttribute("aria-valuetext", `strength ${shown.textContent}`);
  };
  input.addEventListener("input", show);
  const label = make("label", {}, "Strength");
  label.htmlFor = id;
  panel.querySelector(".frames").before(make("div", { className: "slider" }, label, input, shown));
  panel.classList.add("sliding");
  show();
}

document.querySelectorAll("table[data-tools]").forEach(addTools);
document.querySelectorAll("[data-dial]").forEach(addSlider);
