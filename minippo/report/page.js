document.documentElement.classList.add('js');
const sign = text => text.replace('-', '−');
const short = v => Math.abs(v) >= 1000 ? Math.round(v).toLocaleString('en') : `${+v.toPrecision(3)}`;
const fmt = v => v == null ? '–' : sign(short(v));

// curves: the values under the pointer stand where the last values stood, the update under the pointer's line
for (const svg of document.querySelectorAll('[data-chart]')) {
  const {box: [left, right, top, base], steps: [first, last], curves} = JSON.parse(svg.dataset.chart);
  const cursor = svg.querySelector('.cursor'), label = svg.querySelector('.at'), texts = [...svg.closest('figure').querySelector('.now').children];
  const rest = texts.map(text => text.textContent);
  const move = event => {
    const at = event.offsetX / svg.clientWidth * svg.viewBox.baseVal.width;
    const want = first + Math.min(1, Math.max(0, (at - left) / (right - left))) * (last - first);
    const closer = (a, b) => Math.abs(b[0] - want) < Math.abs(a[0] - want) ? b : a;
    const near = curves.map(curve => curve.reduce(closer)), step = near.reduce(closer)[0];
    const x = left + (right - left) * (last > first ? (step - first) / (last - first) : .5);
    cursor.setAttribute('d', `M${x} ${top}V${base}`);
    label.setAttribute('x', Math.min(right - 30, Math.max(left + 20, x)));
    label.textContent = `update ${step}`;
    texts.forEach((text, i) => text.textContent = fmt(near[i][1]));
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
