// discoverRank: what each launcher's variables say, which of them count, and which values are refused; Slurm's compressed lists.
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { RankmeshError } from '../../runtime/core/errors.ts'
import { discoverRank, type Environment, type RankPlace } from '../../runtime/scheduler/discovery.ts'
import { expandHosts, expandTasksPerNode } from '../../runtime/scheduler/slurm.ts'
import { seed } from '../support/random.ts'

const TORCH = { RANK: '5', WORLD_SIZE: '8', LOCAL_RANK: '1', LOCAL_WORLD_SIZE: '4', GROUP_RANK: '1', GROUP_WORLD_SIZE: '2' }
const MASTER = { MASTER_ADDR: 'head', MASTER_PORT: '29500' }
const OPENMPI = {
  OMPI_COMM_WORLD_RANK: '3',
  OMPI_COMM_WORLD_SIZE: '6',
  OMPI_COMM_WORLD_LOCAL_RANK: '0',
  OMPI_COMM_WORLD_LOCAL_SIZE: '3',
  OMPI_COMM_WORLD_NODE_RANK: '2',
  OMPI_UNIVERSE_SIZE: '64',
}
const PMI = { PMI_RANK: '2', PMI_SIZE: '4', MPI_LOCALRANKID: '0', MPI_LOCALNRANKS: '2' }
const SLURM = {
  SLURM_PROCID: '6',
  SLURM_NTASKS: '7',
  SLURM_LOCALID: '0',
  SLURM_NODEID: '3',
  SLURM_NNODES: '4',
  SLURM_TASKS_PER_NODE: '2(x3),1',
  SLURM_JOB_NODELIST: 'n[08-10],m3',
  SLURM_JOB_ID: '123456',
}

const nowhere = { localRank: undefined, localSize: undefined, node: undefined, nodes: undefined, masterAddr: undefined }
const blank = { ...nowhere, masterPort: undefined }

describe('what each launcher says', () => {
  const CASES: Record<string, [env: Environment, found: object | null]> = {
    nothing: [{}, null],
    'nothing but other variables': [{ PATH: '/bin', MASTER_ADDR: 'head', LOCAL_RANK: '0' }, null],
    torchrun: [
      { ...TORCH, ...MASTER },
      {
        family: 'torchrun',
        rank: 5,
        size: 8,
        localRank: 1,
        localSize: 4,
        node: 1,
        nodes: 2,
        masterAddr: 'head',
        masterPort: 29500,
        from: [
          'WORLD_SIZE',
          'RANK',
          'GROUP_WORLD_SIZE',
          'GROUP_RANK',
          'LOCAL_WORLD_SIZE',
          'LOCAL_RANK',
          'MASTER_ADDR',
          'MASTER_PORT',
        ].sort(),
      },
    ],
    'rankmesh run': [
      { ...TORCH, RANKMESH_RUN_ID: 'abc' },
      { family: 'rankmesh', rank: 5, size: 8, localRank: 1, localSize: 4 },
    ],
    'rank and size by hand': [
      { RANK: '0', WORLD_SIZE: '1' },
      { ...blank, family: 'torchrun', rank: 0, size: 1, from: ['RANK', 'WORLD_SIZE'] },
    ],
    'Open MPI; its node rank is no node index': [
      OPENMPI,
      {
        ...blank,
        family: 'openmpi',
        rank: 3,
        size: 6,
        localRank: 0,
        localSize: 3,
        from: Object.keys(OPENMPI)
          .filter((name) => !/NODE_RANK|UNIVERSE/.test(name))
          .sort(),
      },
    ],
    'Open MPI with a master': [
      { ...OPENMPI, ...MASTER },
      { family: 'openmpi', masterAddr: 'head', masterPort: 29500 },
    ],
    MPICH: [PMI, { ...blank, family: 'pmi', rank: 2, size: 4, localRank: 0, localSize: 2, from: Object.keys(PMI).sort() }],
    'MPICH without local ranks': [
      { PMI_RANK: '2', PMI_SIZE: '4' },
      { ...blank, family: 'pmi', rank: 2, size: 4 },
    ],
    'PMIx with a size': [
      { PMIX_RANK: '1', WORLD_SIZE: '2' },
      { ...blank, family: 'pmix', rank: 1, size: 2, from: ['PMIX_RANK', 'WORLD_SIZE'] },
    ],
    'PMIx without a size': [{ PMIX_RANK: '1' }, null],
    Slurm: [
      SLURM,
      {
        family: 'slurm',
        rank: 6,
        size: 7,
        localRank: 0,
        localSize: 1,
        node: 3,
        nodes: 4,
        masterAddr: 'n08',
        masterPort: 10_000 + (123456 % 20_000),
        from: Object.keys(SLURM).sort(),
      },
    ],
    'Slurm: the step before the job': [
      {
        ...SLURM,
        SLURM_PROCID: '1',
        SLURM_STEP_NUM_TASKS: '2',
        SLURM_NODEID: '1',
        SLURM_STEP_NUM_NODES: '2',
        SLURM_STEP_TASKS_PER_NODE: '1(x2)',
        SLURM_STEP_NODELIST: 'n[09-10]',
      },
      { rank: 1, size: 2, node: 1, nodes: 2, localSize: 1, masterAddr: 'n09' },
    ],
    'Slurm: a step of another size than the job is not told by the job': [
      { ...SLURM, SLURM_PROCID: '1', SLURM_STEP_NUM_TASKS: '2', SLURM_NODEID: '0' },
      { rank: 1, size: 2, nodes: undefined, localSize: undefined },
    ],
    'Slurm: steps of one job have ports of their own': [
      { ...SLURM, SLURM_STEP_ID: '1' },
      { masterPort: 10_000 + ((123456 + 7919) % 20_000) },
    ],
    'Slurm, older names': [
      { SLURM_PROCID: '1', SLURM_NPROCS: '2', SLURM_NODELIST: 'a,b', SLURM_JOBID: '7' },
      { family: 'slurm', rank: 1, size: 2, masterAddr: 'a', masterPort: 10_007 },
    ],
    'Slurm: tasks per node as one number': [
      { SLURM_PROCID: '3', SLURM_NTASKS: '4', SLURM_NODEID: '1', SLURM_NNODES: '2', SLURM_NTASKS_PER_NODE: '2' },
      { localSize: 2 },
    ],
    'Slurm: a master given by hand': [
      { ...SLURM, ...MASTER },
      { family: 'slurm', masterAddr: 'head', masterPort: 29500 },
    ],
    'an interactive allocation that launched nothing': [{ SLURM_PROCID: '0', SLURM_LOCALID: '0', SLURM_JOB_ID: '9' }, null],
    'an allocation without a rank': [{ SLURM_NTASKS: '4', SLURM_JOB_NODELIST: 'n[' }, null],
    'empty variables are absent': [
      { RANK: '', WORLD_SIZE: '', ...PMI },
      { family: 'pmi', rank: 2 },
    ],
    'half a family is passed over': [
      { ...OPENMPI, OMPI_COMM_WORLD_SIZE: undefined, ...SLURM },
      { family: 'slurm', rank: 6 },
    ],
    'RANK alone beside a launcher is passed over': [{ RANK: 'x', ...PMI }, { family: 'pmi' }],
  }
  for (const [name, [env, found]] of Object.entries(CASES)) {
    it(name, () => {
      const place = discoverRank(env)
      if (found === null) expect(place).toBeNull()
      else expect({ ...place, from: [...place!.from].sort() }).toMatchObject(found)
    })
  }

  it('the order of precedence', () => {
    const all = { ...TORCH, ...OPENMPI, ...PMI, ...SLURM }
    expect(discoverRank(all, { rank: 0, size: 3 })).toEqual({ ...blank, family: 'rankmesh', rank: 0, size: 3, from: [] })
    expect(discoverRank(all)).toMatchObject({ family: 'torchrun', rank: 5 })
    expect(discoverRank({ ...OPENMPI, ...PMI, ...SLURM })).toMatchObject({ family: 'openmpi', rank: 3, masterAddr: undefined })
    expect(discoverRank({ ...PMI, ...SLURM })).toMatchObject({ family: 'pmi', rank: 2, node: undefined })
    expect(discoverRank(SLURM)).toMatchObject({ family: 'slurm', rank: 6 })
  })

  it('arguments replace what variables say, one by one', () => {
    expect(discoverRank({ ...TORCH, ...MASTER }, { masterPort: 1234, localRank: 2 })).toMatchObject({
      family: 'torchrun',
      rank: 5,
      localRank: 2,
      masterAddr: 'head',
      masterPort: 1234,
    })
    expect(discoverRank(MASTER, { rank: 1, size: 2, masterPort: undefined })).toMatchObject({ rank: 1, masterPort: 29500 })
    expect(discoverRank({}, { masterPort: 1234 })).toBeNull()
  })
})

describe('refused, with the name and the value', () => {
  const CASES: [env: Environment, text: RegExp, explicit?: Partial<RankPlace>][] = [
    [{ RANK: '4', WORLD_SIZE: '4' }, /\[0, 3\] for the variable RANK \(WORLD_SIZE is 4\) but received "4"/],
    [{ RANK: '-1', WORLD_SIZE: '4' }, /RANK .*"-1"/],
    [{ RANK: '1.0', WORLD_SIZE: '4' }, /RANK .*"1\.0"/],
    [{ RANK: '0x1', WORLD_SIZE: '4' }, /RANK .*"0x1"/],
    [{ RANK: ' 1', WORLD_SIZE: '4' }, /RANK .*" 1"/],
    [{ RANK: 'one', WORLD_SIZE: '4' }, /RANK .*"one"/],
    [{ RANK: '0', WORLD_SIZE: '0' }, /WORLD_SIZE .*"0"/],
    [{ RANK: '0', WORLD_SIZE: '99999999999999999' }, /WORLD_SIZE .*"9+"/],
    [{ RANK: '1' }, /RANK is "1" but WORLD_SIZE is not set/],
    [{ WORLD_SIZE: '2' }, /WORLD_SIZE is "2" but RANK is not set/],
    [{ ...TORCH, LOCAL_RANK: '4' }, /\[0, 3\].*LOCAL_RANK.*"4"/],
    [{ ...TORCH, LOCAL_WORLD_SIZE: '9' }, /\[1, 8\].*LOCAL_WORLD_SIZE.*"9"/],
    [{ ...TORCH, GROUP_RANK: '2' }, /\[0, 1\].*GROUP_RANK.*"2"/],
    [{ ...TORCH, MASTER_PORT: '65536' }, /\[1, 65535\].*MASTER_PORT.*"65536"/],
    [{ ...OPENMPI, OMPI_COMM_WORLD_RANK: '6' }, /OMPI_COMM_WORLD_RANK.*"6"/],
    [{ ...PMI, MPI_LOCALRANKID: '2' }, /MPI_LOCALRANKID.*"2"/],
    [{ PMIX_RANK: '2', WORLD_SIZE: '2' }, /PMIX_RANK.*"2"/],
    [{ ...SLURM, SLURM_PROCID: '7' }, /SLURM_PROCID \(SLURM_NTASKS is 7\).*"7"/],
    [{ ...SLURM, SLURM_LOCALID: '1' }, /SLURM_LOCALID.*"1"/],
    [{ ...SLURM, SLURM_NODEID: '4' }, /SLURM_NODEID.*"4"/],
    [{ ...SLURM, SLURM_JOB_NODELIST: 'n[3-1]' }, /SLURM_JOB_NODELIST.*"3-1" is no range/],
    [{ ...SLURM, SLURM_TASKS_PER_NODE: '2(3)' }, /SLURM_TASKS_PER_NODE.*"2\(3\)" is no count/],
    [{ ...SLURM, SLURM_JOB_ID: 'j1' }, /SLURM_JOB_ID.*"j1"/],
    [{}, /only rank; give size too/, { rank: 0 }],
    [TORCH, /only size; give rank too/, { size: 2 }],
    [{}, /\[0, 1\] for rank .*2/, { rank: 2, size: 2 }],
    [TORCH, /\[0, 3\] for localRank .*4/, { localRank: 4 }],
    [TORCH, /masterPort .*0/, { masterPort: 0 }],
    [TORCH, /masterAddr .*""/, { masterAddr: '' }],
  ]
  for (const [env, text, explicit] of CASES) {
    it(`${JSON.stringify(explicit ?? {})} ${text}`, () => {
      const attempt = (): unknown => discoverRank(env, explicit)
      expect(attempt).toThrow(text)
      expect(attempt).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
    })
  }
})

describe('properties', () => {
  const start = seed() | 0
  const options = { seed: start, numRuns: 300 }
  const variables = [
    ...Object.keys({ ...TORCH, ...MASTER, ...OPENMPI, ...PMI, ...SLURM }),
    'PMIX_RANK',
    'SLURM_STEP_NUM_TASKS',
    'SLURM_STEP_ID',
  ]
  const value = fc.oneof({ weight: 6, arbitrary: fc.integer({ min: -1, max: 9 }).map(String) }, fc.constantFrom('', 'x', '2(x2)', 'n[1-2]'))

  it(`any environment gives a place that is possible, or null, or ERR_ARGUMENT (seed ${start})`, () => {
    let places = 0
    const property = fc.property(fc.dictionary(fc.constantFrom(...variables), value, { maxKeys: 24, noNullPrototype: true }), (env) => {
      try {
        const place = discoverRank(env)
        if (place === null) return
        places++
        const { rank, size, localRank = 0, localSize = size, node = 0, nodes = size, masterPort = 1, from } = place
        expect(rank >= 0 && rank < size && localRank < localSize && localSize <= size && node < nodes && nodes <= size).toBe(true)
        expect(masterPort >= 1 && masterPort <= 65535).toBe(true)
        for (const name of from) expect(env[name]).toBeTruthy()
        const kept = Object.fromEntries(from.map((name) => [name, env[name]]))
        expect(discoverRank(kept)).toEqual(place) // what it says it used is all that it used
      } catch (error) {
        if (!(error instanceof RankmeshError)) throw error
        expect(error.code).toBe('ERR_ARGUMENT')
      }
    })
    fc.assert(property, { ...options, numRuns: 3000 })
    expect(places).toBeGreaterThan(20)
  })

  it(`all ranks of a Slurm step agree on the master, and their local ranks fill the nodes (seed ${start})`, () => {
    const property = fc.property(
      fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 1, maxLength: 9 }),
      fc.nat({ max: 2 ** 31 }),
      (counts, job) => {
        const size = counts.reduce((a, b) => a + b, 0)
        const lists = { SLURM_TASKS_PER_NODE: compressCounts(counts), SLURM_JOB_NODELIST: `gpu-[1-${counts.length}]` }
        let rank = 0
        for (const [node, count] of counts.entries()) {
          for (let local = 0; local < count; local++) {
            const own = { SLURM_PROCID: rank, SLURM_NODEID: node, SLURM_LOCALID: local, SLURM_NTASKS: size, SLURM_NNODES: counts.length }
            const env = Object.fromEntries(Object.entries({ ...own, ...lists, SLURM_JOB_ID: job }).map(([name, v]) => [name, String(v)]))
            const masterPort = discoverRank(env)!.masterPort!
            expect(masterPort >= 10_000 && masterPort < 30_000).toBe(true)
            expect(discoverRank(env)).toMatchObject({ rank: rank++, size, node, localRank: local, localSize: count, masterAddr: 'gpu-1' })
            expect(masterPort).toBe(10_000 + (job % 20_000))
          }
        }
      },
    )
    fc.assert(property, options)
  })

  it(`hosts that are compressed expand to themselves (seed ${start})`, () => {
    const prefix = fc.constantFrom('n', 'gpu-', 'rack2-node', 'm3.x')
    const range = fc.record({ from: fc.nat({ max: 120 }), length: fc.integer({ min: 1, max: 20 }), width: fc.integer({ min: 1, max: 4 }) })
    const item = fc.record({ prefix, ranges: fc.array(range, { maxLength: 3 }), suffix: fc.constantFrom('', '-ib', '.local') })
    const property = fc.property(fc.array(item, { minLength: 1, maxLength: 5 }), (items) => {
      const expected: string[] = []
      const texts = items.map(({ prefix, ranges, suffix }) => {
        if (ranges.length === 0) expected.push(prefix + suffix)
        const parts = ranges.map(({ from, length, width }) => {
          const pad = (n: number): string => String(n).padStart(width, '0')
          for (let n = from; n < from + length; n++) expected.push(prefix + pad(n).padStart(pad(from).length, '0') + suffix)
          return length === 1 ? pad(from) : `${pad(from)}-${pad(from + length - 1)}`
        })
        return prefix + (parts.length > 0 ? `[${parts.join(',')}]` : '') + suffix
      })
      expect(expandHosts(texts.join(','), 'LIST')).toEqual(expected)
    })
    fc.assert(property, options)
  })

  it(`tasks per node expand to what was compressed (seed ${start})`, () => {
    const property = fc.property(fc.array(fc.nat({ max: 5 }), { minLength: 1, maxLength: 60 }), (counts) => {
      expect(expandTasksPerNode(compressCounts(counts), 'LIST')).toEqual(counts)
    })
    fc.assert(property, options)
  })

  it(`no text makes them hang or throw anything else (seed ${start})`, () => {
    const text = fc.string({ unit: fc.constantFrom(...'n01279-,[]()x '), maxLength: 40 })
    const property = fc.property(text, (list) => {
      for (const expand of [expandHosts, expandTasksPerNode]) {
        try {
          for (const entry of expand(list, 'LIST')) expect(String(entry)).not.toMatch(/[[\],\s]/)
        } catch (error) {
          expect(error).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('LIST') })
        }
      }
    })
    fc.assert(property, { ...options, numRuns: 3000 })
  })
})

describe('hosts', () => {
  it.each([
    ['localhost', ['localhost']],
    ['n[01-04,7],m3', ['n01', 'n02', 'n03', 'n04', 'n7', 'm3']],
    ['n[008-011]', ['n008', 'n009', 'n010', 'n011']],
    ['n[9-11]', ['n9', 'n10', 'n11']],
    ['r[1-2]n[1-2]-ib', ['r1n1-ib', 'r1n2-ib', 'r2n1-ib', 'r2n2-ib']],
    ['a,b[1],c.example.com', ['a', 'b1', 'c.example.com']],
    ['[1-2]', ['1', '2']],
  ])('%s', (text, hosts) => expect(expandHosts(text, 'LIST')).toEqual(hosts))

  it.each([
    '',
    ',',
    'a,',
    'a,,b',
    'n[',
    'n]',
    'n[]',
    'n[1',
    'n[1-]',
    'n[a-b]',
    'n[1[2]]',
    'n[2-1]',
    'a b',
    'n[1-100001]',
    'n[0-999]m[0-999]',
  ])('refuses %j', (text) => expect(() => expandHosts(text, 'LIST')).toThrow(/LIST/))
})

describe('tasks per node', () => {
  it.each([
    ['4', [4]],
    ['2(x3),1', [2, 2, 2, 1]],
    ['1,2(x1),0', [1, 2, 0]],
  ])('%s', (text, counts) => expect(expandTasksPerNode(text, 'LIST')).toEqual(counts))

  it.each(['', '2(x)', '2x3', '(x3)', '2(x3', '2,', '2(x100001)', '-1'])('refuses %j', (text) =>
    expect(() => expandTasksPerNode(text, 'LIST')).toThrow(/LIST/),
  )
})

function compressCounts(counts: readonly number[]): string {
  const runs: [count: number, times: number][] = []
  for (const count of counts) {
    const last = runs.at(-1)
    if (last?.[0] === count) last[1]++
    else runs.push([count, 1])
  }
  return runs.map(([count, times]) => (times === 1 ? String(count) : `${count}(x${times})`)).join(',')
}
