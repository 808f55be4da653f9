(() => {
  "use strict";
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const data = (root) => JSON.parse(root.querySelector("script[type='application/json']").textContent);

  all("[data-js]").forEach((element) => { element.hidden = false; });
  addEventListener("beforeprint", () => all("details").forEach((element) => { element.open = true; }));

  // Tables: a click on a head sorts by its column, another one turns the order round.
  all("table[data-sort]").forEach((table) => {
    const heads = all("thead th", table), body = table.tBodies[0];
    const key = (row, column) => {
      const text = row.cells[column].textContent.trim(), number = parseFloat(text);
      return Number.isNaN(number) ? text : number;
    };
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [key(row, column), row]);
        rows.sort(([a], [b]) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(b)));
        body.append(...(down ? rows.reverse() : rows).map(([, row]) => row));
      });
    });
  });

  // Text to copy: selected where a page may not write to the clipboard.
  all("[data-copy]").forEach((button) => {
    const source = document.getElementById(button.dataset.copy);
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(source);
      try {
        await navigator.clipboard.writeText(source.textContent.trim());
        button.textContent = "Copied";
      } catch {
        button.textContent = "Selected: copy it with the keyboard";
      }
    });
  });

  // EM by iteration.
  all(".pv-steps").forEach((root) => {
    const { frames } = data(root), slider = root.querySelector("input"), play = root.querySelector("button");
    const said = root.querySelector(".pv-said"), dot = root.querySelector(".pv-dot");
    const shapes = all(".pv-shapes path", root), circles = all(".pv-data circle", root);
    const show = () => {
      const frame = frames[slider.value];
      shapes.forEach((path, k) => path.setAttribute("d", frame.shapes[k]));
      circles.forEach((circle, i) => circle.setAttribute("fill", "#" + frame.fills.slice(3 * i, 3 * i + 3)));
      dot.setAttribute("cx", frame.dot[0]);
      dot.setAttribute("cy", frame.dot[1]);
      said.textContent = frame.said;
      slider.setAttribute("aria-valuetext", frame.said);
    };
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
    slider.addEventListener("input", () => { stop(); show(); });
    play.addEventListener("click", () => {
      if (timer) { stop(); return; }
      if (slider.value === slider.max) slider.value = 0;
      play.textContent = "Pause";
      show();
      timer = setInterval(() => {
        slider.stepUp();
        show();
        if (slider.value === slider.max) stop();
      }, 600);
    });
    show();
  });

  // The latent plane.
  all(".pv-plane").forEach((root) => {
    const { units, box } = data(root), side = units[0].length, last = side - 1;
    const [across, up] = all("input", root), picture = root.querySelector(".pv-manifold img");
    const mark = root.querySelector(".pv-mark"), one = root.querySelector(".pv-one"), said = root.querySelector(".pv-said");
    const svg = root.querySelector("svg"), cell = svg.querySelector(".pv-cell");
    const [left, top, width, height] = box;
    one.style.backgroundImage = `url(${picture.src})`;
    one.style.backgroundSize = `${100 * side}% ${100 * side}%`;
    one.style.aspectRatio = picture.naturalWidth ? `${picture.naturalWidth} / ${picture.naturalHeight}` : "1";
    cell.setAttribute("width", width / side);
    cell.setAttribute("height", height / side);
    cell.setAttribute("visibility", "visible");
    const show = () => {
      const i = +across.value, j = last - up.value;
      mark.style.left = `${(100 * i) / side}%`;
      mark.style.top = `${(100 * j) / side}%`;
      one.style.backgroundPosition = `${(100 * i) / last}% ${(100 * j) / last}%`;
      cell.setAttribute("x", left + (i * width) / side);
      cell.setAttribute("y", top + (j * height) / side);
      const z = [units[0][across.value], units[1][up.value]];
      [across, up].forEach((input, u) => input.setAttribute("aria-valuetext", z[u].toFixed(2)));
      said.textContent = `E[x | z] at z = (${z[0].toFixed(2)}, ${z[1].toFixed(2)})`;
      one.setAttribute("aria-label", said.textContent);
    };
    const choose = (x, y) => {
      across.value = Math.floor(x * side);
      up.value = last - Math.floor(y * side);
      show();
    };
    const follow = (element, place) => ["pointerdown", "pointermove"].forEach((name) =>
      element.addEventListener(name, (event) => {
        if (name === "pointerdown" || event.pointerType === "mouse") choose(...place(event));
      }));
    follow(picture, (event) => {
      const r = picture.getBoundingClientRect();
      return [(event.clientX - r.left) / r.width, (event.clientY - r.top) / r.height];
    });
    follow(svg, (event) => {
      const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      return [(p.x - left) / width, (p.y - top) / height];
    });
    [across, up].forEach((input) => input.addEventListener("input", show));
    show();
  });

  // Linked views: side by side where there is room.
  if (typeof vegaEmbed === "function") {
    const embed = () => all(".pv-view").forEach((root) => {
      const spec = data(root), place = root.querySelector(".pv-chart"), wide = root.clientWidth > 640;
      spec.columns = wide ? 2 : 1;
      const each = (wide ? root.clientWidth / 2 : root.clientWidth) - 78;
      spec.concat.forEach((view) => { view.width = Math.max(160, Math.min(420, each)); view.height = 260; });
      const theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      vegaEmbed(place, spec, { mode: "vega-lite", renderer: "svg", actions: false, tooltip: { theme } });
    });
    let width = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; embed(); } });
    embed();
  }
})();
