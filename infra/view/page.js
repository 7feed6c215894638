element.addEventListener('click', event => {
  const tile = event.target.closest('[data-place]');
  if (tile) trigger('select', {index: Number(tile.dataset.place)});
});
const hole = {box: null, from: null, to: null};
const cell = event => {
  const edge = hole.box.getBoundingClientRect(), rows = Number(hole.box.dataset.rows), columns = Number(hole.box.dataset.columns);
  const inside = (share, number) => Math.max(0, Math.min(number - 1, Math.floor(share * number)));
  return [inside((event.clientY - edge.top) / edge.height, rows), inside((event.clientX - edge.left) / edge.width, columns)];
};
const marked = () => [0, 1].map(n => Math.min(hole.from[n], hole.to[n])).concat([0, 1].map(n => Math.max(hole.from[n], hole.to[n]) + 1));
const show = () => {
  const [top, left, bottom, right] = marked(), rows = Number(hole.box.dataset.rows), columns = Number(hole.box.dataset.columns);
  const style = hole.box.querySelector('b').style, of = (part, whole) => `${100 * part / whole}%`;
  Object.assign(style, {display: 'block', top: of(top, rows), left: of(left, columns), height: of(bottom - top, rows), width: of(right - left, columns)});
};
element.addEventListener('pointerdown', event => {
  hole.box = event.target.closest('.hole');
  if (!hole.box) return;
  event.preventDefault();
  hole.from = hole.to = cell(event);
  show();
});
window.addEventListener('pointermove', event => { if (hole.box) { hole.to = cell(event); show(); } });
window.addEventListener('pointerup', () => {
  if (!hole.box) return;
  hole.box = null;
  trigger('input', {hole: marked().join(', ')});
});
