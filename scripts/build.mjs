// Builds the package with esbuild: one line a target. `--quiet` prints nothing but errors.
import { rmSync } from 'node:fs'
import { build } from 'esbuild'

const quiet = process.argv.includes('--quiet')

const targets = [
  { entry: 'runtime/index.ts', out: 'dist/index.js', platform: 'node', budget: 900_000 },
  { entry: 'runtime/cli/main.ts', out: 'dist/cli.js', platform: 'node', budget: 950_000, banner: '#!/usr/bin/env node' },
  { entry: 'runtime/browser.ts', out: 'dist/browser.js', platform: 'browser', budget: 1_050_000 },
]

rmSync('dist', { recursive: true, force: true })
for (const { entry, out, platform, budget, banner } of targets) {
  const node = platform === 'node'
  const { metafile } = await build({
    entryPoints: [entry],
    outfile: out,
    bundle: true,
    format: 'esm',
    target: 'es2022',
    platform,
    conditions: node ? ['node'] : ['browser'],
    // In Node the dependencies stay packages; a page has no package manager.
    packages: node ? 'external' : 'bundle',
    loader: { '.wgsl': 'text' },
    sourcemap: true,
    metafile: true,
    logLevel: 'warning',
    ...(banner && { banner: { js: banner } }),
  })
  const { bytes } = metafile.outputs[out]
  if (bytes > budget) throw new Error(`${out} has ${bytes} bytes, more than its budget of ${budget}`)
  if (!quiet) console.log(`${out.padEnd(18)} ${(bytes / 1024).toFixed(0).padStart(5)} KiB`)
}
