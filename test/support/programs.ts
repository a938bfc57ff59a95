// C++ programs for tests: each source is compiled once for the same flags, two at a time, whatever programs it is part of.
import { execFile, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)
const compiler = process.env.CXX ?? 'c++'

export class Programs {
  /** Where they are, until `remove`. */
  readonly folder: string
  readonly #flags: readonly string[]
  readonly #objects = new Map<string, Promise<string>>()
  /** Ends of the last compilations. */
  readonly #last: [Promise<unknown>, Promise<unknown>] = [Promise.resolve(), Promise.resolve()]

  /** All are compiled with `flags`, and some with more. */
  constructor(name: string, flags: readonly string[]) {
    this.folder = mkdtempSync(join(tmpdir(), `rankmesh-${name}-`))
    this.#flags = flags
  }

  /** Why programs with these flags cannot be built, or not run, here; empty where they can. */
  obstacle(...flags: string[]): string {
    const program = join(this.folder, 'try')
    const given = { input: 'int main() { return 0; }\n', encoding: 'utf8' } as const
    const built = spawnSync(compiler, [...this.#flags, ...flags, '-x', 'c++', '-', '-o', program], given)
    if (built.error) return `: skipped, no compiler ${compiler}`
    if (built.status !== 0) return `: skipped, it does not build here: ${built.stderr.trim().split('\n').at(-1)}`
    const ran = spawnSync(program, { encoding: 'utf8' })
    return ran.status === 0 ? '' : `: skipped, such programs do not run here: ${ran.stderr.trim().split('\n')[0]}`
  }

  /** The path of a program, or with `-shared` of a library, of these sources; `link` goes behind them. @throws with what the compiler says. */
  async build(name: string, flags: readonly string[], sources: readonly string[], link: readonly string[] = []): Promise<string> {
    const path = join(this.folder, name)
    const objects = await Promise.all(sources.map((source) => this.#object(source, flags)))
    await run(compiler, [...this.#flags, ...flags, ...objects, ...link, '-o', path])
    return path
  }

  #object(source: string, flags: readonly string[]): Promise<string> {
    const key = [...flags, source].join(' ')
    const known = this.#objects.get(key)
    if (known) return known
    const object = join(this.folder, `${this.#objects.size}.o`)
    const turn = this.#objects.size % 2
    const made = this.#last[turn]!.then(async () => {
      await run(compiler, [...this.#flags, ...flags, '-c', source, '-o', object])
      return object
    })
    made.catch(() => {}) // told by whoever awaits it
    this.#last[turn] = made.catch(() => {})
    this.#objects.set(key, made)
    return made
  }

  remove(): void {
    rmSync(this.folder, { recursive: true })
  }
}
