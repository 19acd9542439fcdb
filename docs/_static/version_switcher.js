/* Lists the versions that were built beside this one. They come from _static/versions.js, a script and not JSON, because browsers
   read no JSON from the disk. Where this page exists in another version, the link leads there, otherwise to its front page. */
(() => {
  const nav = document.querySelector("nav.versions");
  const { current, versions } = window.filterattrVersions || { versions: [] };
  if (!nav || versions.length < 2) return;
  const list = document.createElement("ul");
  for (const { name, lacks } of versions) {
    const entry = document.createElement("li");
    const link = document.createElement("a");
    link.textContent = name;
    link.href = `${nav.dataset.root}../${name}/${lacks.includes(nav.dataset.page) ? "index.html" : nav.dataset.page}`;
    if (name === current) link.setAttribute("aria-current", "true");
    entry.append(link);
    list.append(entry);
  }
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.append(nav.querySelector(".versions-this"));
  details.append(summary, list);
  nav.append(details);
})();
