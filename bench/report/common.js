"use strict";
// What the pages share: the report's and the viewer's.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && key !== "style") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// golden angle: neighbouring numbers look different
const colourOf = code => `hsl(${(code * 137.50776405) % 360} 65% ${40 + code * 7 % 30}%)`;

// where an arrow key leads in a map h x w of tokens; undefined for other keys
function arrowed(key, at, h, w) {
  const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -w, ArrowDown: w }[key];
  return move === undefined ? undefined : Math.max(0, Math.min(h * w - 1, at + move));
}

// the token of a map h x w that the pointer is on
function pointed(event, canvas, h, w) {
  const box = canvas.getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) * w / box.width), y = Math.floor((event.clientY - box.top) * h / box.height);
  return Math.max(0, Math.min(h - 1, y)) * w + Math.max(0, Math.min(w - 1, x));
}
