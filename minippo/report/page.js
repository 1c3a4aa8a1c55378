document.documentElement.classList.add('js');
const sign = text => text.replace('-', '−');
const short = v => Math.abs(v) >= 1000 ? Math.round(v).toLocaleString('en') : `${+v.toPrecision(3)}`;
const fmt = v => v == null ? '–' : sign(short(v));

// curves: over the updates or over the time, smoothed on demand (the raw line stays, pale); under the pointer the values there
const clock = s => s < 120 ? `${Math.round(s)} s` : s < 7200 ? `${+(s / 60).toPrecision(3)} min` : `${+(s / 3600).toPrecision(3)} h`;
const headlines = document.getElementById('headlines'), times = JSON.parse(headlines.dataset.times);
headlines.insertAdjacentHTML('beforebegin', `<form id="axes" class="controls"><fieldset><legend>Horizontal axis</legend>
  <label><input type="radio" name="axis" value="" checked><span>Update</span></label>
  <label><input type="radio" name="axis" value="time"><span>Time</span></label></fieldset>
  <label class="slide">Smoothing <output>0</output><input type="range" name="smooth" min="0" max="0.95" step="0.05" value="0"></label></form>`);
const axes = document.getElementById('axes'), whole = Math.max(...times.map(t => t.length ? t.at(-1)[1] : 0));
const seconds = (i, step) => {  // when group i had done this update
  const k = times[i].findIndex(t => t[0] >= step), [b, a] = [times[i].at(k), times[i].at(Math.max(0, k - 1))];
  return k > 0 ? a[1] + (b[1] - a[1]) * (step - a[0]) / (b[0] - a[0]) : b ? b[1] : 0;
};
const smooth = (curve, weight) => {  // a running mean, as TensorBoard's: early values are not drawn towards 0
  let sum = 0, n = 0;
  return curve.map(([step, v]) => v == null ? [step, v] : (sum = weight * sum + v, n = weight * n + 1, [step, sum / n]));
};
for (const svg of document.querySelectorAll('[data-chart]')) {
  const {box: [left, right, top, base], steps: [first, last], range: [low, high], curves} = JSON.parse(svg.dataset.chart);
  const cursor = svg.querySelector('.cursor'), label = svg.querySelector('.at'), texts = [...svg.closest('figure').querySelector('.now').children];
  const rest = texts.map(text => text.textContent), ticks = [...svg.querySelectorAll('.step')], updates = ticks.map(tick => tick.textContent);
  let shown = curves;
  const share = (i, step) => axes.axis.value ? seconds(i, step) / (whole || 1) : last > first ? (step - first) / (last - first) : .5;
  const x = (i, step) => left + (right - left) * share(i, step), y = v => top + (base - top) * (high - Math.max(v, low)) / (high - low);
  const path = (curve, i) => curve.map(([step, v], k) => v == null ? '' :
    `${k && curve[k - 1][1] != null ? 'L' : 'M'}${x(i, step).toFixed(1)} ${y(v).toFixed(1)}h0`).join('');
  const draw = () => {
    const weight = +axes.smooth.value;
    shown = weight ? curves.map(curve => smooth(curve, weight)) : curves;
    svg.querySelectorAll('.curve').forEach((g, i) => {
      g.querySelector('.smooth')?.remove();
      const line = g.querySelector('path:not(.band)'), end = shown[i].filter(p => p[1] != null).at(-1), dot = g.querySelector('circle');
      line.setAttribute('d', path(curves[i], i));
      line.classList.toggle('raw', weight > 0);
      if (weight) line.insertAdjacentHTML('afterend', `<path class="smooth" d="${path(shown[i], i)}"/>`);
      if (end) dot.setAttribute('cx', x(i, end[0])), dot.setAttribute('cy', y(end[1]));
      const band = g.querySelector('.band');
      if (band) band.style.display = axes.axis.value || weight ? 'none' : '';
    });
    ticks.forEach((tick, k) => tick.textContent = axes.axis.value ? clock(whole * k / (ticks.length - 1 || 1)) : updates[k]);
  };
  axes.addEventListener('input', draw);
  const move = event => {
    const at = event.offsetX / svg.clientWidth * svg.viewBox.baseVal.width;
    const gap = i => (a, b) => Math.abs(x(i, b[0]) - at) < Math.abs(x(i, a[0]) - at) ? b : a;
    const near = shown.map((curve, i) => curve.length ? curve.reduce(gap(i)) : null), i = near.findIndex(p => p), on = x(i, near[i][0]);
    cursor.setAttribute('d', `M${on} ${top}V${base}`);
    label.setAttribute('x', Math.min(right - 30, Math.max(left + 20, on)));
    label.textContent = axes.axis.value ? clock(seconds(i, near[i][0])) : `update ${near[i][0]}`;
    texts.forEach((text, i) => text.textContent = fmt(near[i]?.[1]));
  };
  const leave = () => {
    cursor.setAttribute('d', '');
    label.textContent = '';
    texts.forEach((text, i) => text.textContent = rest[i]);
  };
  svg.addEventListener('pointermove', move);
  svg.addEventListener('pointerdown', move);
  svg.addEventListener('pointerleave', event => event.pointerType === 'mouse' && leave());
}
axes.addEventListener('input', () => {
  axes.querySelector('output').textContent = axes.smooth.value;
  try { sessionStorage.setItem('axes', JSON.stringify([axes.axis.value, axes.smooth.value])) } catch {}
});
try {  // as it was before the page loaded itself again
  const kept = JSON.parse(sessionStorage.getItem('axes'));
  if (kept) [axes.axis.value, axes.smooth.value] = kept, axes.dispatchEvent(new Event('input'));
} catch {}

// token trace: the same responses in the colours of another quantity or another update
const data = document.getElementById('data');
if (data) {
  const {names, scales, traces} = JSON.parse(data.textContent), form = document.getElementById('controls');
  const blocks = [...document.querySelectorAll('.trace')], legend = document.getElementById('legend');
  const steps = [...new Set(traces.flatMap(t => t.steps))].sort((a, b) => a - b);
  const paint = (chip, v, scale) => {
    chip.classList.toggle('pos', v > 0);
    chip.classList.toggle('neg', v < 0);
    chip.style.setProperty('--a', Math.sqrt(Math.abs(v || 0) / (scale || 1)).toFixed(2));
    chip.querySelector('small').textContent = v == null ? '–' : sign(v.toFixed(2));
  };
  const detail = (block, t) => {  // the chosen token: all its numbers, and the quantity over the updates
    const chips = [...block.querySelectorAll('.tok')], k = chips.findIndex(chip => chip.classList.contains('on'));
    if (k < 0) return;
    const q = form.q.value, line = t.values[q].map((row, j) => [t.steps[j], row[k]]).filter(p => p[1] != null);
    block.querySelector('.detail p').textContent = chips[k].title;
    block.querySelector('.spark')?.remove();
    if (line.length < 2) return;
    const [first, last] = [line[0], line.at(-1)], ys = line.map(p => p[1]), low = Math.min(...ys);
    const wide = 400 / (last[0] - first[0]), tall = 32 / (Math.max(...ys) - low || 1);
    const points = line.map(([x, y]) => [(x - first[0]) * wide, 34 - (y - low) * tall]);
    block.querySelector('.detail').insertAdjacentHTML('beforeend', `<div class="spark">${names[q]} ${fmt(first[1])}
      <svg viewBox="0 0 400 36" preserveAspectRatio="none"><polyline vector-effect="non-scaling-stroke"
      points="${points}"/></svg>${fmt(last[1])}</div>`);
  };
  const draw = () => {
    const q = form.q.value, step = steps[form.at.value], all = traces.flatMap(t => t.values[q].flat());
    form.querySelector('output').textContent = `${step} of ${steps.at(-1)}`;
    traces.forEach((t, b) => {
      const j = t.steps.reduce((best, s, j) => s <= step ? j : best, 0);
      blocks[b].querySelector('.when').textContent = `score ${fmt(t.score)} · update ${t.steps[j]}`;
      blocks[b].querySelectorAll('.tok').forEach((chip, k) => {
        paint(chip, t.values[q][j][k], scales[q]);
        const numbers = Object.keys(names).map(n => `${names[n]} ${fmt(t.values[n][j][k])}`);
        chip.title = `“${chip.firstChild.textContent}” at update ${t.steps[j]}: ${numbers.join(', ')}`;
      });
      detail(blocks[b], t);
    });
    [-1, -.25, 0, .25, 1].forEach((share, i) => {
      paint(legend.children[i], share * scales[q], scales[q]);
      legend.children[i].hidden = share && !all.some(v => v * share > 0);
    });
  };
  blocks.forEach((block, b) => {
    const choose = event => {
      const chip = event.target.closest('.tok');
      if (!chip) return;
      block.querySelector('.on')?.classList.remove('on');
      chip.classList.add('on');
      detail(block, traces[b]);
    };
    block.addEventListener('pointerover', choose);
    block.addEventListener('click', choose);
    const sizes = traces[b].values[form.q.value].at(-1).map(v => Math.abs(v || 0));
    block.querySelectorAll('.tok')[sizes.indexOf(Math.max(...sizes))]?.classList.add('on');
  });
  form.at.max = form.at.value = steps.length - 1;
  form.addEventListener('input', draw);
  draw();
}
