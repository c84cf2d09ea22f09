// Unpacks the libraries and data embedded in this page and starts it. Modules become blob URLs with
// names in an import map, so neither a server nor a network is needed.
(async () => {
  const trouble = (text) => {
    const line = document.getElementById("trouble");
    line.textContent = text;
    line.hidden = false;
  };
  if (!window.DecompressionStream || !HTMLScriptElement.supports?.("importmap")) {
    trouble("This page needs a browser of 2023 or later (Chrome, Edge, Firefox or Safari 16.4).");
    return;
  }
  const inflate = async (element) => {
    const packed = Uint8Array.from(atob(element.textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const imports = {};
  for (const element of document.querySelectorAll("script[data-module]")) {
    const source = element.dataset.packed ? await inflate(element) : element.textContent;
    imports[element.dataset.module] = URL.createObjectURL(
      new Blob([source], { type: "text/javascript" }),
    );
  }
  const map = document.createElement("script");
  map.type = "importmap";
  map.textContent = JSON.stringify({ imports });
  document.head.append(map);
  try {
    const meta = JSON.parse(document.getElementById("meta").textContent);
    const data = await inflate(document.getElementById("data"));
    const { start } = await import("viewer/main");
    start(meta, data);
  } catch (error) {
    trouble(`This page could not start: ${error.message}`);
    throw error;
  }
})();
