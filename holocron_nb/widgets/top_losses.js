// The front end of TopLosses: draws what the kernel worked out and sends back what was pressed. It keeps nothing but the focus,
// the open label picker and the pictures' addresses, so any number of views of one widget agree.

const ACTIONS = { keep: ["✓", "kept"], relabel: ["✎", "relabelled"], delete: ["✕", "deleted"] };
const HELP = [
  [["←", "→", "↑", "↓"], "move"], [["Enter"], "large view"], [["K"], "keep"], [["R"], "relabel"], [["D"], "delete"],
  [["U"], "undo"], [["Page ↑", "Page ↓"], "page"], [["Esc"], "back"],
];
const MOST_OPTIONS = 50;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function button(text, title, act, attributes = {}) {
  return make("button", { type: "button", title, onclick: act, ...attributes }, text);
}

// Addresses of pictures: bytes come as a DataView, go into a blob, and are released with the last view of them.
class Addresses {
  constructor() {
    this.known = new Map();
  }
  of(bytes) {
    if (!this.known.has(bytes)) {
      const type = bytes.getUint8(0) === 0x89 ? "image/png" : "image/jpeg";
      this.known.set(bytes, URL.createObjectURL(new Blob([bytes], { type })));
    }
    return this.known.get(bytes);
  }
  keep(used) {
    for (const [bytes, address] of this.known) {
      if (!used.has(bytes)) {
        URL.revokeObjectURL(address);
        this.known.delete(bytes);
      }
    }
  }
}

function badge(card) {
  if (!card.action) return make("span", { class: "hn-badge", hidden: true });
  const [mark, word] = ACTIONS[card.action];
  return make("span", { class: `hn-badge hn-${card.action}` }, `${mark} ${word}${card.action === "relabel" ? ` ${card.label}` : ""}`);
}

function facts(card) {
  return make("dl", {}, ...card.facts.flatMap(([name, value, number, wrong]) => [
    make("dt", {}, name),
    make("dd", { title: `${value} ${number}` }, make("span", { class: "hn-value" }, value),
      number ? make("span", { class: `hn-number${wrong ? " hn-wrong" : ""}` }, number) : null),
  ]));
}

function flag(card) {
  return card.suspect ? make("span", { class: "hn-flag", title: card.suspect }, "⚑ label?") : null;
}

function render({ model, el }) {
  const send = (what, ...arguments_) => model.send({ do: what, with: arguments_ });
  const set = (name, to) => model.send({ set: name, to });
  const addresses = new Addresses();
  const view = () => model.get("_view");
  const cards = () => view().cards ?? [];
  let focused = 0; // position in the page of the card that Tab reaches
  let wantsFocus = false; // the focus is in the gallery and must follow its redrawing

  // ---- toolbar: filters, order, pages
  const choice = (name, title, options) => {
    const select = make("select", { "aria-label": title, "data-name": name, onchange: () => set(name, select.value) });
    const fill = () => {
      const wanted = options().map(([value, text]) => `${value}\n${text}`).join("\0");
      if (select.dataset.filled !== wanted) {
        select.replaceChildren(...options().map(([value, text]) => make("option", { value }, text)));
        select.dataset.filled = wanted;
      }
      select.value = model.get(name);
    };
    return { node: make("label", { class: "hn-choice" }, make("span", {}, title), select), fill };
  };
  const counted = (key) => () => [["", "all"], ...(view()[key] ?? []).map(([name, count]) => [name, `${name} (${count})`])];
  const choices = [
    choice("split", "Split", () => (view().splits ?? []).map((name) => [name, name])),
    choice("target", "Label", counted("targets")),
    choice("predicted", "Predicted", counted("predictions")),
    choice("decided", "Decision", () => [["", "all"], ["undecided", "undecided"], ["keep", "kept"], ["relabel", "relabelled"], ["delete", "deleted"]]),
    choice("order", "Order by", () => (view().orders ?? []).map((name) => [name, name])),
  ];
  const suspects = make("input", { type: "checkbox", onchange: () => set("suspects", suspects.checked) });
  const suspectsText = make("span", {});
  const suspectsNode = make("label", { class: "hn-check", title: "show only samples of whose prediction the net is surer than it is of that class on average" },
    suspects, suspectsText);
  const turn = (by) => {
    const page = model.get("page") + by;
    if (page >= 1 && page <= view().pages) {
      focused = 0;
      set("page", page);
    }
  };
  const before = button("‹", "previous page (Page Up)", () => turn(-1), { "aria-label": "previous page" });
  const after = button("›", "next page (Page Down)", () => turn(1), { "aria-label": "next page" });
  const position = make("span", { class: "hn-position" });
  const heading = make("div", { class: "hn-heading" });
  const toolbar = make("div", { class: "hn-toolbar" }, ...choices.map((c) => c.node), suspectsNode, make("div", { class: "hn-pages" }, before, position, after));

  // ---- label picker: type to narrow, arrows and Enter, or click
  let picker = null;
  const closePicker = () => {
    const back = picker?.back;
    picker?.node.remove();
    picker = null;
    back?.focus();
  };
  const openPicker = (card, anchor, back) => {
    closePicker();
    const others = model.get("classes").filter((name) => name !== card.target);
    const names = [...new Set([...(card.prediction === card.target ? [] : [card.prediction]), ...others])];
    let matching = names, active = 0;
    const list = make("div", { role: "listbox", class: "hn-options", id: `hn-options-${Math.random().toString(36).slice(2)}` });
    const choose = (name) => {
      closePicker();
      send("relabel", card.index, name);
    };
    const draw = () => {
      list.replaceChildren(...matching.slice(0, MOST_OPTIONS).map((name, i) => make("div", {
        role: "option", id: `${list.id}-${i}`, "aria-selected": String(i === active), onclick: () => choose(name),
      }, name, name === card.prediction ? make("small", {}, " predicted") : null)));
      if (!matching.length) list.append(make("div", { class: "hn-none" }, "no such class"));
      if (matching.length > MOST_OPTIONS) list.append(make("div", { class: "hn-none" }, `${matching.length - MOST_OPTIONS} more, type to narrow`));
      input.setAttribute("aria-activedescendant", matching.length ? `${list.id}-${active}` : "");
      list.children[active]?.scrollIntoView({ block: "nearest" });
    };
    const input = make("input", {
      type: "text", role: "combobox", "aria-expanded": "true", "aria-controls": list.id, "aria-label": `New label of sample ${card.index}`,
      placeholder: "new label", autocomplete: "off", spellcheck: "false",
      oninput: () => {
        const typed = input.value.trim().toLowerCase();
        const starts = names.filter((name) => name.toLowerCase().startsWith(typed));
        matching = [...starts, ...names.filter((name) => !starts.includes(name) && name.toLowerCase().includes(typed))];
        active = 0;
        draw();
      },
      onkeydown: (event) => {
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (step) active = Math.max(0, Math.min(Math.min(matching.length, MOST_OPTIONS) - 1, active + step));
        else if (event.key === "Enter" && matching.length) choose(matching[active]);
        else if (event.key === "Escape" || event.key === "Tab") closePicker();
        else return event.stopPropagation();
        event.preventDefault();
        event.stopPropagation();
        if (step) draw();
      },
    });
    const node = make("div", { class: "hn-picker" }, input, list);
    node.addEventListener("focusout", (event) => {
      if (picker?.node === node && event.relatedTarget && !node.contains(event.relatedTarget)) {
        picker.back = null;
        closePicker();
      }
    });
    list.addEventListener("mousedown", (event) => event.preventDefault()); // the focus stays in the field
    picker = { node, back };
    anchor.append(node);
    draw();
    input.focus();
    node.scrollIntoView({ block: "nearest" });
  };

  // ---- what can be done with a sample, for cards and the large view alike
  const actions = (card, back) => {
    const row = make("div", { class: "hn-actions" });
    const act = (what) => () => send(what, card.index);
    const pressed = (what) => ({ "aria-pressed": String(card.action === what), tabindex: back.dataset.key ? "-1" : null, "data-do": what });
    row.append(
      button("✓ Keep", "keep (K)", act("keep"), pressed("keep")),
      ...(view().relabels ? [
        button("✎ Relabel", "relabel (R)", () => openPicker(card, row, back), { ...pressed("relabel"), "aria-haspopup": "listbox" })] : []),
      button("✕ Delete", "delete (D)", act("delete"), pressed("delete")));
    return row;
  };
  const picture = (bytes, alt) => {
    if (bytes === undefined) return make("div", { class: "hn-picture hn-waiting", role: "img", "aria-label": alt });
    if (typeof bytes === "string") return make("div", { class: "hn-picture hn-broken", role: "img", "aria-label": `${alt}. ${bytes}` }, bytes);
    const image = make("img", { class: "hn-picture", alt, src: addresses.of(bytes), draggable: "false" });
    image.addEventListener("load", () => image.classList.toggle("hn-small", image.naturalWidth <= 96));
    return image;
  };

  // ---- gallery
  const gallery = make("div", { class: "hn-gallery", role: "group", "aria-label": "Samples with the largest losses" });
  const nodes = new Map(); // card nodes by key: redrawn only when something in them changed, so that the focus stays
  const drawCard = (card, i) => {
    const bytes = model.get("_thumbnails")[card.key];
    const state = JSON.stringify(card);
    const old = nodes.get(card.key);
    const node = old?.node ?? make("div", { class: "hn-card", "data-key": card.key, "data-index": card.index, role: "group" });
    if (!old || old.state !== state || old.bytes !== bytes) {
      node.setAttribute("aria-label", card.words);
      node.dataset.action = card.action;
      const open = make("div", { class: "hn-frame", title: "open the large view (Enter)", onclick: () => set("selected", card.index) },
        picture(bytes, card.words), flag(card), badge(card));
      node.replaceChildren(open, facts(card), actions(card, node));
    }
    node.tabIndex = i === focused ? 0 : -1;
    nodes.set(card.key, { node, state, bytes });
    return node;
  };
  const drawGallery = () => {
    const keys = new Set(cards().map((card) => card.key));
    focused = Math.max(0, Math.min(focused, cards().length - 1));
    const drawn = cards().map(drawCard);
    for (const key of nodes.keys()) if (!keys.has(key)) nodes.delete(key);
    const same = drawn.length === gallery.children.length && drawn.every((node, i) => node === gallery.children[i]);
    if (!same) gallery.replaceChildren(...(drawn.length ? drawn : [make("p", { class: "hn-none" }, "No sample passes the filters.")]));
    if (wantsFocus && !picker && !gallery.contains(document.activeElement)) drawn[focused]?.focus();
  };
  const focusCard = (i) => {
    const node = gallery.children[Math.max(0, Math.min(i, cards().length - 1))];
    node?.focus();
  };
  gallery.addEventListener("focusin", (event) => {
    const node = event.target.closest(".hn-card");
    if (!node) return;
    focused = [...gallery.children].indexOf(node);
    wantsFocus = true;
    for (const child of gallery.children) child.tabIndex = child === node ? 0 : -1;
  });
  gallery.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !gallery.contains(event.relatedTarget)) wantsFocus = false;
  });
  const columns = () => {
    const tops = [...gallery.children].map((node) => node.offsetTop);
    return Math.max(1, tops.filter((top) => top === tops[0]).length);
  };

  // ---- large view
  const large = make("div", { class: "hn-large", tabindex: "-1", hidden: true });
  let drawnLarge = "";
  const drawLarge = () => {
    const card = view().large ?? {};
    const open = card.index !== undefined;
    const wasOpen = !large.hidden;
    large.hidden = !open;
    gallery.hidden = toolbar.hidden = open;
    if (!open) {
      drawnLarge = "";
      large.replaceChildren();
      if (wasOpen) focusCard(Math.max(0, cards().findIndex((c) => c.key === large.dataset.shown)));
      return;
    }
    const ready = model.get("_large").key === card.key ? model.get("_large").pictures : [];
    const state = JSON.stringify([card, ready.map((p) => p.title), model.get("page")]);
    if (state === drawnLarge) return;
    const inside = large.contains(document.activeElement) ? document.activeElement.dataset.do : undefined;
    drawnLarge = state;
    large.dataset.shown = card.key;
    large.setAttribute("aria-label", card.words);
    large.replaceChildren(...[
      make("div", { class: "hn-row" },
        button("← Gallery", "back to the gallery (Esc)", () => set("selected", null), { "data-do": "back" }),
        button("‹ Previous", "previous sample (←)", () => set("selected", card.previous), { disabled: card.previous === null, "data-do": "previous" }),
        button("Next ›", "next sample (→)", () => set("selected", card.next), { disabled: card.next === null, "data-do": "next" }),
        make("strong", {}, `Sample ${card.index}`), badge(card)),
      card.suspect ? make("div", { class: "hn-doubt" }, `⚑ ${card.suspect}`) : null,
      make("div", { class: "hn-pictures" }, ...(ready.length ? ready : [{ title: "", alt: card.words }]).map((p) =>
        make("figure", {}, picture(p.image, p.alt), make("figcaption", {}, p.title === "original" ? "original" : p.alt)))),
      make("div", { class: "hn-row hn-facts" }, facts(card),
        card.path ? make("code", {}, card.path) : null),
      actions(card, large)].filter(Boolean));
    if (!wasOpen || (inside === undefined && !large.contains(document.activeElement))) {
      if (!wasOpen || document.activeElement === document.body) large.focus();
    } else if (inside) (large.querySelector(`[data-do="${inside}"]:not([disabled])`) ?? large).focus();
  };

  // ---- below: undo, export, apply, status, help
  const undo = button("↶ Undo", "take back the last decision (U)", () => send("undo"), { "data-do": "undo" });
  const tally = make("span", { class: "hn-tally" });
  const csv = make("input", { type: "text", value: "decisions.csv", "aria-label": "CSV file", spellcheck: "false" });
  const folder = make("input", { type: "text", value: "corrected", "aria-label": "New folder", spellcheck: "false" });
  const unapply = button("Undo apply", "remove the last corrected copy, if nobody has changed it", () => send("undo_apply"));
  const applied = make("span", { class: "hn-tally" });
  const refresh = button("Score again", "go over the split again, for example after more training", () => send("refresh"));
  const files = make("details", { class: "hn-files" }, make("summary", {}, "Export and apply"),
    make("div", { class: "hn-row" }, csv, button("Save CSV", "write the decisions as CSV", () => send("to_csv", csv.value))),
    make("div", { class: "hn-row" }, folder,
      button("Apply to a copy", "write a corrected copy of the image folder; the original is not changed", () => send("apply", folder.value)), unapply, applied));
  const status = make("div", { class: "hn-status", role: "status", "aria-live": "polite" });
  const help = make("div", { class: "hn-help" }, ...HELP.map(([keys, text]) =>
    make("span", { "data-help": text }, ...keys.map((key) => make("kbd", {}, key)), ` ${text}`)));
  const drawRest = () => {
    const v = view();
    heading.replaceChildren(make("strong", {}, "Top losses"), ` ${v.total ?? 0} worst of ${v.size ?? 0} samples · ${v.count ?? 0} shown`);
    for (const c of choices) c.fill();
    suspectsText.textContent = `likely label errors (${v.suspects ?? 0})`;
    suspects.checked = model.get("suspects");
    suspectsNode.hidden = !v.suspects && !suspects.checked;
    position.textContent = `page ${model.get("page")} of ${v.pages ?? 1}`;
    before.disabled = model.get("page") <= 1;
    after.disabled = model.get("page") >= (v.pages ?? 1);
    tally.textContent = v.summary ?? "";
    help.querySelector("[data-help=relabel]").hidden = !v.relabels;
    undo.disabled = !v.decided;
    unapply.disabled = !v.applied;
    applied.textContent = v.applied ? `applied: ${v.applied}` : "";
    const message = model.get("_message");
    if (status.textContent !== message) status.textContent = message;
    status.classList.toggle("hn-error", message.startsWith("Not done"));
  };

  const root = make("div", { class: "hn-top-losses", role: "region", "aria-label": "Top losses", "data-live": model.get("_key") },
    heading, toolbar, gallery, large, make("div", { class: "hn-row hn-foot" }, undo, tally, refresh), files, status, help);

  // ---- keys: those of the notebook around us ("D D" deletes a cell) must not see ours
  const current = () => {
    if (view().large?.index !== undefined) return large.contains(document.activeElement) ? view().large : null;
    const node = document.activeElement?.closest?.(".hn-card");
    return node ? cards().find((card) => card.key === node.dataset.key) ?? null : null;
  };
  const onCard = (card, event) => {
    const node = gallery.querySelector(`[data-key="${card.key}"]`);
    const isLarge = view().large?.index !== undefined;
    const move = (by) => (isLarge ? by !== null && set("selected", by) : null);
    const at = focused;
    const keys = {
      k: () => send("keep", card.index),
      d: () => send("delete", card.index),
      delete: () => send("delete", card.index),
      ...(view().relabels ? { r: () => (isLarge ? openPicker(card, large.querySelector(".hn-actions"), large) : openPicker(card, node.querySelector(".hn-actions"), node)) } : {}),
      arrowright: () => (isLarge ? move(card.next) : focusCard(at + 1)),
      arrowleft: () => (isLarge ? move(card.previous) : focusCard(at - 1)),
      ...(isLarge ? { escape: () => set("selected", null) } : {
        arrowdown: () => focusCard(at + columns() < cards().length ? at + columns() : at),
        arrowup: () => focusCard(at - columns() >= 0 ? at - columns() : at),
        home: () => focusCard(0),
        end: () => focusCard(cards().length - 1),
        ...(event.target === node ? { enter: () => set("selected", card.index), " ": () => set("selected", card.index) } : {}),
      }),
    };
    return keys[event.key.toLowerCase()];
  };
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
    if (["SELECT", "TEXTAREA"].includes(event.target.tagName) || event.target.matches("input[type=text]")) return;
    const card = current();
    const act = { u: () => send("undo"), pageup: () => turn(-1), pagedown: () => turn(1) }[event.key.toLowerCase()] ?? (card && onCard(card, event));
    if (act) {
      event.preventDefault();
      act();
    }
  });

  // JupyterLab and Notebook look for shortcuts before we do, from the focused element upwards, and end where this attribute stands:
  // those with Ctrl, such as saving, they may have
  const share = (event) => {
    if (root.contains(event.target)) event.target.toggleAttribute("data-lm-suppress-shortcuts", !(event.ctrlKey || event.metaKey));
  };
  window.addEventListener("keydown", share, true);

  const draw = () => {
    drawGallery();
    drawLarge();
    drawRest();
    addresses.keep(new Set([...Object.values(model.get("_thumbnails")), ...(model.get("_large").pictures ?? []).map((p) => p.image)]));
  };
  const watched = ["_view", "_thumbnails", "_large", "_message", "classes", "page", "suspects"].map((name) => `change:${name}`).join(" ");
  model.on(watched, draw);
  el.append(root);
  draw();
  send("show");
  return () => {
    model.off(watched, draw);
    window.removeEventListener("keydown", share, true);
    addresses.keep(new Set());
  };
}

export default { render };
