// What the addon does with NCCL, over a double of it that has no GPUs: collectives of all kinds by old and new versions, faults, ranks that do not
// come. Driven by a program without Node; test/comm/nccl.test.ts goes through the addon.
import { execFile } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Programs } from '../support/programs.ts'
import { seed } from '../support/random.ts'

const run = promisify(execFile)
const programs = new Programs('nccl', ['-std=c++20', '-O1', '-pthread'])
afterAll(() => programs.remove())
const sources = join(import.meta.dirname, '../../native/nccl')
const double = join(import.meta.dirname, 'nccl-double')
const PROGRAM = [join(double, 'main.cc'), ...['library.cc', 'communicator.cc', 'collectives.cc'].map((file) => join(sources, file))]
/** What a build may take where others build at the same time. */
const BUILD_MS = 600_000

/** The double, `of` a kind of its own, and the program, built alike. */
class Built {
  readonly obstacle: string
  readonly library: string
  readonly built: Promise<string>

  constructor(name: string, flags: readonly string[] = [], of: readonly string[] = []) {
    this.obstacle = process.platform === 'linux' ? programs.obstacle(...flags) : ': skipped, NCCL is a library of Linux'
    this.library = join(programs.folder, `libnccl-${name}.so`)
    this.built = this.obstacle === '' ? this.#build(name, flags, of) : Promise.resolve('')
    this.built.catch(() => {}) // told by the tests that await it
  }

  async #build(name: string, flags: readonly string[], of: readonly string[]): Promise<string> {
    await programs.build(`libnccl-${name}.so`, [...flags, ...of, '-fPIC'], [join(double, 'nccl.cc')], ['-shared', '-lrt'])
    return programs.build(name, flags, PROGRAM, [this.library, '-Wl,-rpath,$ORIGIN', '-ldl'])
  }

  /** What it says, with the variables `given`. */
  async says(what: string, given: Record<string, string> = {}): Promise<string> {
    const start = seed()
    const path = { RANKMESH_NCCL_PATH: this.library, RANKMESH_CUDA_PATH: '' }
    const variables = Object.fromEntries(
      Object.entries(given).map(([name, value]) => [
        name === 'path' ? 'RANKMESH_NCCL_PATH' : `RANKMESH_NCCL_DOUBLE_${name.toUpperCase()}`,
        value,
      ]),
    )
    const env = { ...process.env, ...path, ...variables, TSAN_OPTIONS: 'halt_on_error=1:atexit_sleep_ms=0' }
    const { stdout, stderr } = await run(await this.built, [what, String(start)], { env, maxBuffer: 2 ** 26 }).catch(
      (error: { stdout: string; stderr: string }) => error,
    )
    return `${stdout}${stderr}`
  }
}

const segments = (): string[] => readdirSync('/dev/shm').filter((name) => name.startsWith('nccl-double-'))
const before = process.platform === 'linux' ? segments() : []

const plain = new Built('plain')
describe.skipIf(plain.obstacle !== '')(`NCCL through its double${plain.obstacle}`, () => {
  beforeAll(() => plain.built, BUILD_MS)

  it('collectives of 1 to 4 ranks of one thread, of any kind, type and size, one behind the other', async () => {
    expect(await plain.says('one-thread')).toBe('done\n')
  })

  it.each(['21003', '22703', '22803'])('also as version %s, with what that has', async (version) => {
    expect(await plain.says('one-thread', { version })).toBe('done\n')
    expect(await plain.says('threads', { version })).toBe('done\n')
  })

  it('collectives of ranks in threads, and in processes', async () => {
    expect(await plain.says('threads')).toBe('done\n')
    expect(await plain.says('processes')).toBe('done\n')
  })

  it('groups are split, in the order of keys, and a rank may join no part', async () => {
    expect(await plain.says('splits')).toBe('done\n')
    expect(await plain.says('splits', { version: '21801' })).toBe('done\n')
  })

  it('sums of scaled operands, registered memory, windows', async () => {
    expect(await plain.says('extras')).toBe('version 2.30.7\nscaled: nothing\nregistered: nothing\nwindow: nothing\nsplit: nothing\ndone\n')
  })

  it('says which version has what the one at hand lacks', async () => {
    const said = await plain.says('extras', { version: '21801' })
    expect(said).toMatch(
      /^version 2\.18\.1\nscaled: nothing\nregistered: NCCL 2\.18\.1 has no ncclMemAlloc, which came with 2\.19\.1; install/,
    )
    expect(await plain.says('splits', { version: '21003' })).toMatch(/NCCL 2\.10\.3 has no ncclCommSplit, which came with 2\.18\.1/)
  })

  it('says why there is no library, or none of use', async () => {
    expect(await plain.says('extras', { path: '/nowhere/libnccl.so.2' })).toMatch(
      /^FAILED: \/nowhere\/libnccl\.so\.2: cannot open.*; install NCCL 2 .* RANKMESH_NCCL_PATH\n$/,
    )
    expect(await plain.says('extras', { version: '2604' })).toMatch(/^FAILED: .*: NCCL 2\.6\.4 is older than 2\.7\.3; install/)
    expect(await plain.says('extras', { path: 'libm.so.6' })).toMatch(/^FAILED: libm\.so\.6: not NCCL, it has no ncclGetVersion/)
  })

  it.each([
    ['ncclAllReduce:2:1:1', 'ncclAllReduce of rank 1: unhandled cuda error (code 1): planted at ncclAllReduce of rank 1'],
    ['ncclGroupEnd:1:1:2', 'allReduce of rank 1: unhandled system error (code 2): planted at ncclGroupEnd of rank 1'],
  ])('an error (%s) comes with its text and rank, ends the group, and a new one works at once', async (fault, text) => {
    const [thrown, later, done, rest] = (await plain.says('faulty', { fault })).split('\n')
    expect(thrown).toBe(`thrown: ${text}; NCCL_DEBUG=WARN has NCCL say more`)
    expect(later).toContain(`later: NCCL's communicator of rank 0 is of no more use: ${text}`)
    expect([done, rest]).toEqual(['done', ''])
  })

  it('an error that shows later is found while a collective is under way', async () => {
    const said = await plain.says('faulty', { fault: 'ncclAllReduce:3:1:async6' })
    expect(said).toMatch(
      /^thrown: nothing\nrank 0 failed: no\nrank 1 failed: a collective of rank 1: remote process exited.* \(code 6\).* \[6\]\nlater: .*\ndone\n$/,
    )
  })

  it('a collective that does not end is given up at its deadline, in old versions too', async () => {
    for (const version of ['23007', '21003']) {
      const said = await plain.says('faulty', { version, fault: 'ncclAllReduce:3:0:stuck' })
      expect(said).toMatch(/^thrown: nothing\nrank 0 failed: (no|allReduce of rank 0: still under way after 700 ms.*)\nrank 1 failed: /)
      expect(said).toMatch(/\ndone\n$/)
    }
  })

  it('a rank that fails while it joins: the others give up in time', async () => {
    for (const [version, name] of [
      ['23007', 'ncclCommInitRankConfig'],
      ['21003', 'ncclCommInitRank'],
    ]) {
      const said = await plain.says('faulty-join', { version: version as string, fault: `${name}:1:1:2` })
      expect(said).toContain(
        `joined: ${name} of rank 0: not all ranks came in time\njoined: ${name} of rank 1: unhandled system error (code 2)`,
      )
      expect(said).toMatch(/\ndone\n$/)
    }
  })

  it('a rank that never comes, to the group or to a collective, and one that is aborted by hand', async () => {
    const lines = (await plain.says('absent')).split('\n')
    expect(lines).toEqual([
      'joined: ncclCommInitRankConfig of rank 0: not all ranks came in time',
      expect.stringMatching(/^rank 0 failed: allReduce of rank 0: still under way after 300 ms; .* \[8\]$/),
      'unfinished: 0 and 1',
      "later: NCCL's communicator of rank 1 is of no more use: by hand",
      'done',
      '',
    ])
  })

  it('what may run calls again ends before the communicator does', async () => {
    const of = (why: string): string[] => [
      ...[0, 1].map((rank) => `ended: NCCL's communicator of rank ${rank} has ended: ${why}`),
      "later: NCCL's communicator of rank 0 has ended meanwhile",
    ]
    expect((await plain.says('reruns')).split('\n')).toEqual([...of('this rank has left it'), ...of('by hand'), 'done', ''])
  })

  it('leaves nothing behind', () => {
    expect(segments().filter((name) => !before.includes(name))).toEqual([])
  })
})

const oldest = new Built('oldest', [], ['-DRANKMESH_NCCL_OLDEST'])
describe.skipIf(oldest.obstacle !== '')(`a library without the newer functions${oldest.obstacle}`, () => {
  beforeAll(() => oldest.built, BUILD_MS)

  it('is of use for what it has', async () => {
    expect(await oldest.says('one-thread')).toBe('done\n')
    expect(await oldest.says('extras')).toMatch(
      /^version 2\.10\.3\nscaled: NCCL 2\.10\.3 has no ncclRedOpCreatePreMulSum, which came with 2\.11\.4/,
    )
  })
})

const threads = new Built('tsan', ['-g1', '-fsanitize=thread'])
describe.skipIf(threads.obstacle !== '')(`without data races${threads.obstacle}`, () => {
  beforeAll(() => threads.built, BUILD_MS)

  it.each(['one-thread', 'threads', 'splits', 'absent', 'extras', 'reruns'])('%s', async (what) => {
    const said = await threads.says(what)
    expect(said).toMatch(/\n?done\n$/)
    expect(said).not.toContain('ThreadSanitizer')
  })
})
