// Builds the double of NCCL for tests that go through the addon, once for each state of its sources.
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)
const folder = import.meta.dirname
const cache = join(folder, '../../../node_modules/.cache/rankmesh-nccl-double')

/** The library's path. @throws with what the compiler says. */
export async function buildNccl(): Promise<string> {
  const hash = createHash('sha256')
  const sources = readdirSync(folder).filter((name) => /\.(cc|h)$/.test(name) && name !== 'main.cc')
  for (const name of sources.sort())
    hash
      .update(name)
      .update('\0')
      .update(readFileSync(join(folder, name)))
  const path = join(cache, `${hash.digest('hex').slice(0, 20)}-libnccl-double.so`)
  if (existsSync(path)) return path
  mkdirSync(cache, { recursive: true })
  const made = `${path}.${process.pid}`
  const flags = ['-std=c++20', '-O2', '-shared', '-fPIC', '-pthread']
  await run(process.env.CXX ?? 'c++', [...flags, join(folder, 'nccl.cc'), '-o', made, '-lrt', '-ldl'])
  renameSync(made, path)
  return path
}
