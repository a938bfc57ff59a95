// Programs in C that benchmarks compare with or take limits from, compiled when they are needed.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** The path of a program made from a source in bench/peers, there until this process ends; null where it cannot be, with the reason printed. */
export function built(compiler, source, options = []) {
  const folder = mkdtempSync(join(tmpdir(), 'rankmesh-bench-'))
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
  const program = join(folder, 'program')
  try {
    execFileSync(compiler, ['-O3', '-march=native', ...options, join(import.meta.dirname, 'peers', source), '-o', program], {
      stdio: 'pipe',
    })
    return program
  } catch (error) {
    console.log(`not measured: ${compiler} ${source}: ${error.message.split('\n')[0]}`)
    return null
  }
}
