// `rankmesh run` as a user runs it: what the ranks get, how their lines come out, how they end together, and that nothing is left behind.
import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { sleep } from '../support/outcomes.ts'

const command = join(import.meta.dirname, '../../dist/cli.js')
const folder = mkdtempSync(join(tmpdir(), 'rankmesh-run-'))
afterAll(() => rmSync(folder, { recursive: true }))

let files = 0
/** A file with this text; returns its path. */
function file(text: string, extension = '.mjs'): string {
  const path = join(folder, `${files++}${extension}`)
  writeFileSync(path, text)
  return path
}

interface Outcome {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

interface Started {
  child: ChildProcess
  outcome: Promise<Outcome>
  /** Resolves with the match once standard output shows it. */
  shows(pattern: RegExp): Promise<RegExpMatchArray>
}

function start(args: string[], env: NodeJS.ProcessEnv = {}): Started {
  const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^RANKMESH_(TOKEN|RUN_ID)|^MASTER_|RANK$/.test(name)))
  const child = spawn(process.execPath, [command, 'run', ...args], { env: { ...clean, ...env } })
  const text = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) child[name].setEncoding('utf8').on('data', (data) => (text[name] += data))
  const outcome = new Promise<Outcome>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal, ...text }))
  })
  const shows = async (pattern: RegExp): Promise<RegExpMatchArray> => {
    for (let i = 0; i < 1000; i++) {
      const match = pattern.exec(text.stdout)
      if (match) return match
      await sleep(20)
    }
    throw new Error(`${pattern} did not come within 20 s: ${JSON.stringify(text)}`)
  }
  return { child, outcome, shows }
}

const run = (...args: string[]): Promise<Outcome> => start(args).outcome

const lines = (text: string, rank: number): string[] =>
  text
    .split('\n')
    .filter((line) => line.startsWith(`[${rank}] `))
    .map((line) => line.slice(`[${rank}] `.length))

/** Whether the process runs; one that has ended and whose end nobody has asked for yet does not. */
function alive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return process.platform !== 'linux' || !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}

/** All process ids that were written as `pid N` are gone, within a second. */
async function expectGone(text: string, count: number): Promise<void> {
  const pids = [...text.matchAll(/pid (\d+)/g)].map(([, pid]) => Number(pid))
  expect(pids).toHaveLength(count)
  for (let i = 0; i < 50 && pids.some(alive); i++) await sleep(20)
  expect(pids.filter(alive)).toEqual([])
}

const NAMES = [
  'RANK',
  'WORLD_SIZE',
  'LOCAL_RANK',
  'LOCAL_WORLD_SIZE',
  'GROUP_RANK',
  'GROUP_WORLD_SIZE',
  'MASTER_ADDR',
  'MASTER_PORT',
  'RANKMESH_TOKEN',
  'RANKMESH_RUN_ID',
  'RANKMESH_PARENT_FD',
]
const showEnvironment = file(`console.log(JSON.stringify(Object.fromEntries(${JSON.stringify(NAMES)}.map((n) => [n, process.env[n]]))))`)
type Shown = Record<string, string | undefined>

const shown = ({ stdout }: Outcome, ranks: number[]): Shown[] => ranks.map((rank) => JSON.parse(lines(stdout, rank)[0]!))

const FOREVER = "console.log('pid', process.pid); setInterval(() => {}, 1000)"

describe('what the ranks get', () => {
  it('the variables of torchrun, and a fresh secret for each run', async () => {
    const [first, second] = await Promise.all([run('-n', '3', showEnvironment), run('-n3', showEnvironment)])
    expect([first.code, first.stderr]).toEqual([0, ''])
    const all = shown(first, [0, 1, 2])
    for (const [rank, env] of all.entries()) {
      expect(env).toMatchObject({ RANK: `${rank}`, WORLD_SIZE: '3', LOCAL_RANK: `${rank}`, LOCAL_WORLD_SIZE: '3' })
      expect(env).toMatchObject({ GROUP_RANK: '0', GROUP_WORLD_SIZE: '1', MASTER_ADDR: '127.0.0.1' })
      expect(Number(env.MASTER_PORT)).toBeGreaterThan(1023)
      expect(env.RANKMESH_TOKEN).toMatch(/^[0-9a-f]{64}$/)
      expect(env.RANKMESH_RUN_ID).toMatch(/^[0-9a-f]{16}$/)
      expect(env.RANKMESH_PARENT_FD).toBeUndefined()
      for (const name of ['MASTER_PORT', 'RANKMESH_TOKEN', 'RANKMESH_RUN_ID']) expect(env[name]).toBe(all[0]![name])
    }
    const [other] = shown(second, [0])
    expect(other!.RANKMESH_TOKEN).not.toBe(all[0]!.RANKMESH_TOKEN)
    expect(other!.RANKMESH_RUN_ID).not.toBe(all[0]!.RANKMESH_RUN_ID)
  })

  it('on two nodes: one world, and a secret only where one was given', async () => {
    const node = (rank: string, ...more: string[]): string[] => [
      '-n',
      '2',
      '--nnodes=2',
      '--node-rank',
      rank,
      '--master',
      'head.example:4711',
      ...more,
      showEnvironment,
    ]
    const secret = file('  of the file\n', '.txt')
    const runs = await Promise.all([
      run(...node('0')),
      run(...node('1')),
      start(node('1'), { RANKMESH_TOKEN: 'of the environment', RANKMESH_RUN_ID: 'mine' }).outcome,
      run(...node('1', '--token-file', secret)),
    ])
    const [zero, one, two, three] = runs.map((outcome, i) => shown(outcome, i === 0 ? [0, 1] : [2, 3]))
    const world = { WORLD_SIZE: '4', LOCAL_WORLD_SIZE: '2', GROUP_WORLD_SIZE: '2', MASTER_ADDR: 'head.example', MASTER_PORT: '4711' }
    expect(zero).toMatchObject([
      { ...world, RANK: '0', LOCAL_RANK: '0', GROUP_RANK: '0' },
      { ...world, RANK: '1', LOCAL_RANK: '1', GROUP_RANK: '0' },
    ])
    expect(one).toMatchObject([
      { ...world, RANK: '2', LOCAL_RANK: '0', GROUP_RANK: '1' },
      { ...world, RANK: '3', LOCAL_RANK: '1', GROUP_RANK: '1' },
    ])
    expect(zero![0]!.RANKMESH_TOKEN).toBeUndefined()
    expect(zero![0]!.RANKMESH_RUN_ID).toBe(one![1]!.RANKMESH_RUN_ID)
    expect(two![0]).toMatchObject({ RANKMESH_TOKEN: 'of the environment', RANKMESH_RUN_ID: 'mine' })
    expect(three![1]!.RANKMESH_TOKEN).toBe('of the file')
  })

  it('its arguments as they are, dashes and all', async () => {
    const script = file('console.log(JSON.stringify(process.argv.slice(2)))')
    const given = ['-n', '7', '--json', '--', '--token-file=x', '', 'a b']
    for (const args of [
      ['-n', '1', script, ...given],
      ['-n', '1', '--', script, ...given],
    ])
      expect(JSON.parse(lines((await run(...args)).stdout, 0)[0]!)).toEqual(given)
  })

  it('CommonJS, workers and child processes of a script are as without it', async () => {
    const script = file(
      `const { Worker } = require('node:worker_threads'), { execFileSync } = require('node:child_process')
      new Worker("console.log('worker', process.env.RANK)", { eval: true }).on('exit', () =>
        console.log(execFileSync(process.execPath, ['-p', "'child ' + process.env.RANK"]).toString().trim()))`,
      '.cjs',
    )
    const { code, stdout, stderr } = await run('-n', '2', script)
    expect([code, stderr]).toEqual([0, ''])
    for (const rank of [0, 1]) expect(lines(stdout, rank)).toEqual([`worker ${rank}`, `child ${rank}`])
  })

  it('a command that is no script is run as it is', async () => {
    const { code, stdout } = await run('-n', '2', 'node', '-p', "'rank ' + process.env.RANK")
    expect(code).toBe(0)
    expect([lines(stdout, 0), lines(stdout, 1)]).toEqual([['rank 0'], ['rank 1']])
  })
})

describe('lines', () => {
  it('each under its rank, in its order, whole, on the stream they were written to', async () => {
    const script = file(`
      const { RANK } = process.env
      for (let i = 0; i < 2000; i++) console.log(i, 'é€😀'.repeat(20), RANK)
      console.error('error of', RANK)
      process.stdout.write('no newline')`)
    const { code, stdout, stderr } = await run('-n', '4', script)
    expect(code).toBe(0)
    expect(stdout.split('\n')).toHaveLength(4 * 2001 + 1)
    for (let rank = 0; rank < 4; rank++) {
      const expected = Array.from({ length: 2000 }, (_, i) => `${i} ${'é€😀'.repeat(20)} ${rank}`)
      expect(lines(stdout, rank)).toEqual([...expected, 'no newline'])
      expect(lines(stderr, rank)).toEqual([`error of ${rank}`])
    }
  })

  it('a reader that goes away ends the run', async () => {
    const script = file("console.log('pid', process.pid); setInterval(() => console.log('x'.repeat(1000)), 1)")
    const started = start(['-n', '2', script])
    const [first, second] = [await started.shows(/\[0\] pid \d+/), await started.shows(/\[1\] pid \d+/)]
    started.child.stdout!.destroy()
    const { code } = await started.outcome
    expect(code).toBe(141)
    await expectGone(`${first}${second}`, 2)
  })
})

describe('ends', () => {
  it('with the code of the rank that failed first; the others may say what they saw, then they are ended', async () => {
    const script = file(`
      console.log('pid', process.pid)
      if (process.env.RANK === '1') setTimeout(() => process.exit(7), 300)
      if (process.env.RANK === '0') setTimeout(() => { console.error('rank 1 has failed'); process.exit(1) }, 800)
      if (process.env.RANK === '2') setInterval(() => {}, 1000)
      if (process.env.RANK === '3') { process.on('SIGTERM', () => console.log('no')); setInterval(() => {}, 1000) }`)
    const began = performance.now()
    const { code, stdout, stderr } = await run('-n', '4', script)
    expect(code).toBe(7)
    expect(stderr.match(/^rankmesh run:.*$/gm)).toEqual([
      expect.stringMatching(/rank 1 \(process \d+\) exited with code 7; ending the others$/),
    ])
    expect(lines(stderr, 0)).toEqual(['rank 1 has failed'])
    expect(lines(stdout, 3)[1]).toBe('no')
    expect(performance.now() - began).toBeLessThan(15_000)
    await expectGone(stdout, 4)
  })

  it.each([
    ['SIGKILL', 137],
    ['SIGTERM', 143],
    ['SIGSEGV', 139],
  ] as const)('by %s with code %i', async (signal, expected) => {
    const { code, stdout, stderr } = await run('-n', '1', file(`console.log('pid', process.pid); process.kill(process.pid, '${signal}')`))
    expect(code).toBe(expected)
    expect(stderr).toMatch(new RegExp(`^rankmesh run: rank 0 \\(process \\d+\\) was ended by ${signal}$`, 'm'))
    await expectGone(stdout, 1)
  })

  it('an uncaught error is shown under its rank', async () => {
    const { code, stderr } = await run('-n', '2', file("if (process.env.RANK === '1') throw new Error('of rank 1')"))
    expect(code).toBe(1)
    expect(lines(stderr, 1).join('\n')).toContain('Error: of rank 1')
  })

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)('%s goes on to the ranks', async (signal, expected) => {
    const started = start(['-n', '2', file(FOREVER)])
    await Promise.all([started.shows(/\[0\] pid/), started.shows(/\[1\] pid/)])
    started.child.kill(signal)
    const { code, stdout, stderr } = await started.outcome
    expect([code, stderr]).toEqual([expected, ''])
    await expectGone(stdout, 2)
  })

  it('ranks that take a signal for a wish to end well end well', async () => {
    const script = file(`${FOREVER}; process.on('SIGINT', () => { console.log('saved'); process.exit(0) }); console.log('ready')`)
    const started = start(['-n', '2', script])
    await Promise.all([started.shows(/\[0\] ready/), started.shows(/\[1\] ready/)])
    started.child.kill('SIGINT')
    const { code, stdout } = await started.outcome
    expect([code, lines(stdout, 0).at(-1), lines(stdout, 1).at(-1)]).toEqual([0, 'saved', 'saved'])
  })

  it('scripts notice that the launcher was killed', async () => {
    const stubborn = file(`${FOREVER}; process.on('SIGTERM', () => {})`)
    const started = [start(['-n', '2', file(FOREVER)]), start(['-n', '1', stubborn])]
    const texts = await Promise.all([
      started[0]!.shows(/\[0\] pid \d+/),
      started[0]!.shows(/\[1\] pid \d+/),
      started[1]!.shows(/\[0\] pid \d+/),
    ])
    for (const { child } of started) child.kill('SIGKILL')
    await expectGone(texts.slice(0, 2).join(' '), 2)
    await sleep(3500) // what does not listen is killed after its grace
    await expectGone(String(texts[2]), 1)
  })

  it('processes that a script leaves behind end with it', async () => {
    const script = file(`
      import { spawn } from 'node:child_process'
      const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'], { stdio: 'inherit' })
      console.log('pid', child.pid)
      process.exit(0)`)
    const began = performance.now()
    const { code, stdout } = await run('-n', '2', script)
    expect(code).toBe(0)
    expect(performance.now() - began).toBeLessThan(5000)
    await expectGone(stdout, 2)
  })

  it('a command that cannot be started is a failure of its rank', async () => {
    const broken = file('#!/nowhere/interpreter\n', '')
    chmodSync(broken, 0o755)
    const { code, stderr } = await run('-n', '2', broken)
    expect(code).toBe(127)
    expect(stderr).toMatch(/^rankmesh run: rank 0 could not be started: /m)
  })
})

describe('refused before anything starts', () => {
  const script = file("console.log('started')")
  const empty = file(' \n', '.txt')
  it.each([
    [[], 'Expected a script to run'],
    [['-n', '2'], 'Expected a script to run'],
    [['-n', '0', script], '[1, 64] for -n but received "0"'],
    [['-n', '65', script], '[1, 64] for -n but received "65"'],
    [['-n', '1e1', script], 'for -n but received "1e1"'],
    [['-n', '2', join(folder, 'nowhere.mjs')], 'nowhere.mjs'],
    [['-n', '2', folder], 'is no executable file'],
    [['-n', '2', 'no-such-command-here'], 'is no executable on the PATH'],
    [['--node-rank', '1', script], '--node-rank needs --nnodes'],
    [['--nnodes', '2', script], '--master HOST:PORT'],
    [['--nnodes', '2', '--node-rank', '2', '--master', 'h:1', script], '[0, 1] for --node-rank but received "2"'],
    [['--nnodes', '2', '--node-rank', '0', '--master', 'h', script], 'HOST:PORT for --master but received "h"'],
    [['--nnodes', '2', '--node-rank', '0', '--master', 'h:65536', script], 'HOST:PORT for --master'],
    [['--token-file', join(folder, 'nowhere.txt'), script], 'Cannot read the file of --token-file'],
    [['--token-file', empty, script], 'is empty'],
  ])('%j: %s', async (args, message) => {
    const { code, stdout, stderr } = await run(...args)
    expect([code, stdout]).toEqual([1, ''])
    expect(stderr).toMatch(/^ERR_ARGUMENT: [^\n]*\n$/)
    expect(stderr).toContain(message)
  })

  it.each([[['--ranks', '2', 'x.js']], [['-n']]])('%j is a usage error', async (args) => expect((await run(...args)).code).toBe(2))

  it('--help helps', async () => {
    const { code, stdout } = await run('--help')
    expect(code).toBe(0)
    expect(stdout).toContain('rankmesh run [-n N]')
  })
})
