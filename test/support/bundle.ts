// Bundles a TypeScript program for plain Node, so that tests can run it in threads and processes of their own.
import { mkdirSync, mkdtempSync } from 'node:fs'
import { join } from 'node:path'
import { build } from 'esbuild'

const ROOT = join(import.meta.dirname, '../..')

/** The path of a module made from `entry`, a path from the root of the repository; packages stay packages. It lies under build/test. */
export async function bundle(entry: string): Promise<string> {
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
  })
  return outfile
}
