// Elements, numbers as text, and data blocks. Text goes into the page as text, never as markup.

const el = (tag, given = {}, ...inside) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list" && typeof value !== "string") made[name] = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...inside.flat().filter((one) => one !== null && one !== undefined));
  return made;
};

const by = (id) => document.getElementById(id);

const unpack = async (id) => {
  const text = atob(by(id).textContent);
  const packed = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) packed[at] = text.charCodeAt(at);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};

const number = (value, digits = 3) => {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (Number.isInteger(value)) return size >= 1e7 ? value.toExponential(2) : value.toLocaleString("en");
  if (size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  if (size >= 1e5) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(size >= 1000 ? 4 : digits)));
};

const percent = (value) =>
  value === null || value === undefined ? "–" : `${Number((100 * value).toPrecision(3))}%`;

const shown = (name, value) =>
  (state.words[name] || {}).percent ? percent(value) : number(value);

const label = (name) => (state.words[name] || { label: name.replaceAll("_", " ") }).label;

// What prints of a token: line breaks and tabs as signs, nothing as a word.
const visible = (text) =>
  text === "" ? "(empty)" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");

const copying = (text, said = "Copy") =>
  el("button", {
    type: "button", class: "small", title: text,
    onclick: async (event) => {
      const button = event.currentTarget;
      button.textContent = (await copied(text)) ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { button.textContent = said; }, 1500);
    },
  }, said);

const copied = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // a page from the disk may lack the clipboard: an old way that works there
    const room = el("textarea", { class: "away" });
    room.value = text;
    document.body.append(room);
    room.select();
    const done = document.execCommand("copy");
    room.remove();
    return done;
  }
};

const code = (text) =>
  el("div", { class: "code" }, copying(text), el("pre", {}, el("code", {}, text)));

const saved = (name, kind, text) => {
  const address = URL.createObjectURL(new Blob([text], { type: kind }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
};

const select = (name, options, value, change) => {
  const box = el("select", { onchange: () => change(box.value) },
    options.map(([key, text]) => el("option", { value: key }, text)));
  box.value = value;
  return el("label", { class: "pick" }, el("span", {}, name), box);
};
