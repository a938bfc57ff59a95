// One program, its ranks in threads, in processes, under launchers and on two hosts: the same results, the same text, the same errors.
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it, vi } from 'vitest'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'
import { bundle } from '../support/bundle.ts'

const ROOT = join(import.meta.dirname, '../..')
const program = await bundle('test/launch/programs.ts')
const CLI = join(ROOT, 'dist/cli.js')
const TOKENS = 24

interface Ended {
  code: number | null
  out: string
  err: string
}

/** `command` with its last line of output as `result`. */
function ended(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Ended> {
  const child = spawn(command, args, {
    env: {
      ...process.env,
      RANKMESH_TEST_ROOT: ROOT,
      RANKMESH_ADDON: addonReport().path ?? 'off',
      RANKMESH_TOKEN: 'a token for tests',
      ...env,
    },
  })
  let [out, err] = ['', '']
  child.stdout.on('data', (chunk) => {
    out += chunk
  })
  child.stderr.on('data', (chunk) => {
    err += chunk
  })
  return new Promise((resolve) => child.on('close', (code) => resolve({ code, out, err })))
}

function resultOf({ code, out, err }: Ended): unknown {
  if (code !== 0) throw new Error(`exit code ${code}: ${out.slice(-2000)} ${err.slice(-2000)}`)
  return JSON.parse(out.trim().split('\n').at(-1) as string)
}

const run = async (...args: string[]): Promise<unknown> => resultOf(await ended(process.execPath, [program, ...args]))

/** What one rank in this thread writes. */
const alone = await run('generate', 'local', '1', `${TOKENS}`)

const expected = (size: number): unknown[] =>
  Array.from({ length: size }, (_, rank) => ({
    rank,
    size,
    device: (size * (size + 1)) / 2,
    host: [(size * (size - 1)) / 2],
    text: [[rank, 'é']],
  }))

const noAddon = loadAddon()?.features().shm.available ? null : `the addon is not built (${addonReport().command})`
const placed = (placement: string, name: string, body: () => Promise<void>): void => {
  if (placement === 'process' && noAddon) it.skip(`${name}: ${noAddon}`, () => {})
  else it(name, body)
}

for (const placement of ['thread', 'process']) {
  describe(placement, () => {
    for (const ranks of [1, 2, 4])
      placed(placement, `${ranks} ranks: sums`, async () => expect(await run('sums', placement, `${ranks}`)).toEqual(expected(ranks)))

    placed(placement, 'two launches, with one in this thread between them', async () => {
      expect(await run('twice', placement, '2')).toEqual({
        first: [1, 2],
        between: [0, 100],
        second: [
          [203, 0],
          [203, 1],
        ],
      })
    })

    for (const [ranks, device] of [
      [2, 'webgpu:software'],
      [4, 'cpu'],
    ] as const) {
      placed(placement, `${ranks} ranks on ${device} write what one thread's ranks write`, async () => {
        expect(String(alone).length).toBeGreaterThan(TOKENS / 2)
        expect(await run('generate', placement, `${ranks}`, `${TOKENS}`, device)).toBe(alone)
      })
    }

    placed(placement, 'a rank that throws: launch throws it', async () => {
      expect(await run('ending', placement, '3', 'throw')).toMatchObject({ kind: 'TypeError', message: 'on purpose' })
    })

    placed(placement, 'what a rank throws, its peers hear', async () => {
      const found = await ended(process.execPath, [program, 'heard', placement, '2'])
      expect([resultOf(found), found.err.trim()]).toEqual(['on purpose', 'heard Rank 1 failed: TypeError: on purpose'])
    })

    placed(placement, 'a rank that returns while others wait for it: ERR_RANK_FAILED', async () => {
      expect(await run('ending', placement, '2', 'return')).toMatchObject({
        code: 'ERR_RANK_FAILED',
        rank: 1,
        message: expect.stringMatching(/left the group/),
      })
    })

    placed(placement, 'a result that cannot travel: ERR_ARGUMENT', async () => {
      expect(await run('ending', placement, '2', 'function')).toMatchObject({
        code: 'ERR_ARGUMENT',
        rank: 1,
        message: expect.stringMatching(/cannot be cloned/),
      })
    })

    placed(placement, 'a signal ends all ranks, with its reason', async () => {
      const { kind, message, ms } = (await run('ending', placement, '3', 'signal')) as { kind: string; message: string; ms: number }
      expect([kind, message]).toEqual(['RangeError', 'enough'])
      expect(ms).toBeLessThan(6000)
    })
  })
}

describe('process', () => {
  // Not in threads: one that exits while its GPU works takes the process with it.
  placed('process', 'a rank that exits: ERR_RANK_FAILED', async () => {
    expect(await run('ending', 'process', '2', 'exit')).toMatchObject({
      code: 'ERR_RANK_FAILED',
      rank: 1,
      message: expect.stringMatching(/exit code 3/),
    })
  })

  placed('process', 'a rank that is killed: ERR_RANK_FAILED that names it', async () => {
    const found = await run('ending', 'process', '3', 'kill')
    expect(found).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 1 })
  })

  placed('process', 'no memory is left behind', async () => {
    const found = (): string[] => readdirSync('/dev/shm')
    const before = found()
    for (const how of ['throw', 'kill', 'exit']) await run('ending', 'process', '3', how)
    // What other programs of this moment have there goes soon.
    const added = found().filter((name) => !before.includes(name))
    await vi.waitFor(() => expect(found().filter((name) => added.includes(name))).toEqual([]), { timeout: 30_000, interval: 500 })
  })
})

/** Results that each of some processes printed, each a line that may begin with `[rank] `. */
const lines = (out: string): unknown[] =>
  out
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line.replace(/^\[\d+\] /, '')))

const has = (command: string, ...args: string[]): boolean => spawnSync(command, args, { stdio: 'ignore' }).status === 0

describe('launchers', () => {
  placed('process', 'rankmesh run: no option needed in the program', async () => {
    const found = await ended(process.execPath, [CLI, 'run', '-n', '3', program, 'sums', 'default', '-'])
    expect(found.code, found.err).toBe(0)
    expect(lines(found.out)).toEqual([expected(3), expected(3), expected(3)])
  })

  placed('process', 'rankmesh run: a program of several launches', async () => {
    const found = await ended(process.execPath, [CLI, 'run', '-n', '2', program, 'twice', 'process', '2'])
    expect(found.code, found.err).toBe(0)
    for (const line of lines(found.out))
      expect(line).toMatchObject({
        second: [
          [203, 0],
          [203, 1],
        ],
      })
  })

  placed('process', 'rankmesh run: a killed rank ends the others with ERR_RANK_FAILED and the run with its code', async () => {
    const found = await ended(process.execPath, [CLI, 'run', '-n', '3', program, 'ending', 'process', '3', 'kill'])
    expect(found.code).toBe(137)
    for (const rank of [0, 2]) expect(found.out).toMatch(new RegExp(`\\[${rank}\\] .*ERR_RANK_FAILED.*"rank":1`))
  })

  placed('process', 'rankmesh run: a rank that returns early, and one that throws, as in any placement', async () => {
    const early = await ended(process.execPath, [CLI, 'run', '-n', '3', program, 'early', 'process', '3'])
    for (const line of lines(early.out)) expect(line).toEqual(['ERR_RANK_FAILED', expect.stringMatching(/Rank 1 has left the group/)])
    const heard = await ended(process.execPath, [CLI, 'run', '-n', '2', program, 'heard', 'process', '2'])
    expect(lines(heard.out)).toEqual(['on purpose', 'on purpose'])
    expect(heard.err).toMatch(/\[0\] heard Rank 1 failed: TypeError: on purpose/)
  })

  placed('process', 'rankmesh run over two nodes: rank 0 throws, and the others hear what', async () => {
    if (!loadAddon()?.features().gloo.available) {
      console.log(`not run: ${loadAddon()?.features().gloo.detail}`)
      return
    }
    const port = 20_000 + Math.floor(Math.random() * 10_000)
    const node = (index: number): Promise<Ended> => {
      const rankmesh = [CLI, 'run', '-n', '1', '--nnodes', '2', '--node-rank', `${index}`, '--master', `127.0.0.1:${port}`]
      return ended(process.execPath, [...rankmesh, program, 'heard', 'process', '2', '0'])
    }
    const [first, second] = await Promise.all([node(0), node(1)])
    expect([...lines(first.out), ...lines(second.out)]).toEqual(['on purpose', 'on purpose'])
    expect(second.err).toMatch(/\[1\] heard Rank 0 failed: TypeError: on purpose/)
  })

  placed('process', 'rankmesh run over two nodes', async () => {
    if (!loadAddon()?.features().gloo.available) {
      console.log(`not run: ${loadAddon()?.features().gloo.detail}`)
      return
    }
    const port = 20_000 + Math.floor(Math.random() * 10_000)
    const node = (index: number): Promise<Ended> =>
      ended(process.execPath, [
        CLI,
        'run',
        '-n',
        '2',
        '--nnodes',
        '2',
        '--node-rank',
        `${index}`,
        '--master',
        `127.0.0.1:${port}`,
        program,
        'sums',
        'process',
        '4',
      ])
    for (const found of await Promise.all([node(0), node(1)])) {
      expect(found.code, found.err).toBe(0)
      expect(lines(found.out)).toEqual([expected(4), expected(4)])
    }
  })

  const mpirun = has('mpirun', '--version') ? null : 'mpirun is not installed (Debian: openmpi-bin)'
  if (mpirun || noAddon) it.skip(`mpirun: ${mpirun ?? noAddon}`, () => {})
  else
    it('mpirun: the bundled model, with no option but the program', async () => {
      const found = await ended('mpirun', [
        '--allow-run-as-root',
        '--oversubscribe',
        '-np',
        '2',
        process.execPath,
        program,
        'generate',
        'process',
        '2',
        `${TOKENS}`,
        'cpu',
      ])
      expect(found.code, found.err).toBe(0)
      expect(lines(found.out)).toEqual([alone, alone])
    })
})

/** Two network namespaces of this machine, joined by a cable. */
function makeHosts(): string | { hosts: readonly [string, string]; remove(): void } {
  const hosts = [`rankmesh-a${process.pid}`, `rankmesh-b${process.pid}`] as const
  const remove = (): void => {
    for (const host of hosts) spawnSync('ip', ['netns', 'delete', host], { stdio: 'ignore' })
  }
  try {
    const ip = (...args: string[]): void => void execFileSync('ip', args, { stdio: 'pipe' })
    for (const host of hosts) ip('netns', 'add', host)
    ip('link', 'add', 'rm0', 'netns', hosts[0], 'type', 'veth', 'peer', 'name', 'rm0', 'netns', hosts[1])
    hosts.forEach((host, i) => {
      ip('-n', host, 'addr', 'add', `10.99.0.${i + 1}/24`, 'dev', 'rm0')
      ip('-n', host, 'link', 'set', 'rm0', 'up')
      ip('-n', host, 'link', 'set', 'lo', 'up')
    })
    return { hosts, remove }
  } catch (error) {
    remove()
    return `no network namespaces: ${error instanceof Error ? error.message.split('\n').slice(0, 2).join(' ') : error}`
  }
}

describe('two hosts', () => {
  const made = noAddon ?? (loadAddon()?.features().gloo.available ? makeHosts() : `${loadAddon()?.features().gloo.detail}`)
  if (typeof made === 'string') {
    it.skip(`two network namespaces: ${made}`, () => {})
    return
  }
  for (const each of [1, 2]) {
    it(`the bundled model on ${each} rank${each > 1 ? 's' : ''} each writes the same text`, async () => {
      const node = (index: number): Promise<Ended> => {
        const rankmesh = [CLI, 'run', '-n', `${each}`, '--nnodes', '2', '--node-rank', `${index}`, '--master', '10.99.0.1:29500']
        const script = [program, 'generate', 'process', `${2 * each}`, `${TOKENS}`, each > 1 ? 'cpu' : 'webgpu:software']
        return ended('ip', ['netns', 'exec', made.hosts[index as 0 | 1], process.execPath, ...rankmesh, ...script])
      }
      for (const found of await Promise.all([node(0), node(1)])) {
        expect(found.code, found.err).toBe(0)
        expect(lines(found.out)).toEqual(Array(each).fill(alone))
      }
    })
  }
  it('the hosts are given back', () => {
    made.remove()
    expect(spawnSync('ip', ['netns', 'list'], { encoding: 'utf8' }).stdout).not.toContain(made.hosts[0])
  })
})
