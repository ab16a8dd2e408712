// Bundles src/ and style.css into the one module that ships in the wheel. Its first line names the sources' hash, so
// that a test in Python sees a bundle that was not built again (tests/explorer/test_bundle.py).
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const sources = [
  "build.mjs",
  "package.json",
  "style.css",
  "tsconfig.json",
  ...readdirSync(`${here}src`).map((name) => `src/${name}`),
].sort();
const hash = createHash("sha256");
for (const name of sources) {
  hash.update(`${name}\n${readFileSync(here + name, "utf8").replaceAll("\r\n", "\n")}`);
}

await build({
  absWorkingDir: here,
  entryPoints: ["src/main.tsx"],
  outfile: "../src/attention_transfer/explorer/page.js",
  bundle: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  minify: true,
  loader: { ".css": "text" },
  banner: { js: `// sources: ${hash.digest("hex")}; with preact (MIT, Jason Miller)` },
  logLevel: "warning",
});
