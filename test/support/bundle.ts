// Bundles a TypeScript program for plain Node, so that tests can run it in threads and processes of their own.
import { mkdirSync, mkdtempSync } from 'node:fs'
import { join } from 'node:path'
import { build, type Plugin } from 'esbuild'

const ROOT = join(import.meta.dirname, '../..')

/**
 * The path of a module made from `entry`, a path from the root of the repository. It lies under build/test. Packages stay packages, but for
 * those in `instead`, by name: a module of the repository takes the place of each, which itself may import the package.
 */
export async function bundle(entry: string, instead: Readonly<Record<string, string>> = {}): Promise<string> {
  mkdirSync(join(ROOT, 'build/test'), { recursive: true })
  const outfile = join(mkdtempSync(join(ROOT, 'build/test/run-')), 'program.mjs')
  await build({
    entryPoints: [join(ROOT, entry)],
    outfile,
    bundle: true,
    format: 'esm',
    target: 'es2022',
    platform: 'node',
    conditions: ['node'],
    packages: 'external',
    loader: { '.wgsl': 'text' },
    logLevel: 'warning',
    plugins: [replaced(instead)],
  })
  return outfile
}

function replaced(instead: Readonly<Record<string, string>>): Plugin {
  return {
    name: 'replaced',
    setup({ onResolve }) {
      onResolve({ filter: /^[^./]/ }, ({ path, importer }) => {
        const module = instead[path] && join(ROOT, instead[path])
        return module && importer !== module ? { path: module } : null
      })
    },
  }
}
