// discoverRank: which rank this process is, as told by the program that started it: rankmesh run, torchrun, mpirun or srun.
import { ArgumentError, checkInteger, invalidArgument } from '../core/errors.ts'
import { expandHosts, expandTasksPerNode } from './slurm.ts'

export type Environment = Readonly<Record<string, string | undefined>>

export type LauncherFamily = 'rankmesh' | 'torchrun' | 'openmpi' | 'pmi' | 'pmix' | 'slurm'

/** A process's place among all; what the launcher does not tell is undefined, and found when the ranks connect. */
export interface RankPlace {
  rank: number
  size: number
  /** Rank among the processes of this machine, and how many they are. */
  localRank: number | undefined
  localSize: number | undefined
  /** Index of this machine, and how many there are. */
  node: number | undefined
  nodes: number | undefined
  /** Where the ranks meet. */
  masterAddr: string | undefined
  masterPort: number | undefined
}

export interface DiscoveredRank extends RankPlace {
  /** `rankmesh` stands for `rankmesh run` and for a rank and size given as arguments. */
  family: LauncherFamily
  /** The variables this was read from. */
  from: readonly string[]
}

/** The variables of a family, by what they tell; the first that is set counts. */
interface Variables {
  family: LauncherFamily
  rank: string
  size: readonly string[]
  localRank?: string
  localSize?: string
  node?: string
  nodes?: readonly string[]
}

/**
 * By precedence. OMPI_COMM_WORLD_NODE_RANK is missing on purpose: it is a rank on the node, not the index of one. PMIx tells no size, so
 * that needs WORLD_SIZE beside it. SLURM_NTASKS may be the allocation's while SLURM_PROCID counts in the step, so the step's comes first.
 */
const FAMILIES: readonly Variables[] = [
  {
    family: 'torchrun',
    rank: 'RANK',
    size: ['WORLD_SIZE'],
    localRank: 'LOCAL_RANK',
    localSize: 'LOCAL_WORLD_SIZE',
    node: 'GROUP_RANK',
    nodes: ['GROUP_WORLD_SIZE'],
  },
  {
    family: 'openmpi',
    rank: 'OMPI_COMM_WORLD_RANK',
    size: ['OMPI_COMM_WORLD_SIZE'],
    localRank: 'OMPI_COMM_WORLD_LOCAL_RANK',
    localSize: 'OMPI_COMM_WORLD_LOCAL_SIZE',
  },
  { family: 'pmi', rank: 'PMI_RANK', size: ['PMI_SIZE'], localRank: 'MPI_LOCALRANKID', localSize: 'MPI_LOCALNRANKS' },
  { family: 'pmix', rank: 'PMIX_RANK', size: ['WORLD_SIZE'] },
  {
    family: 'slurm',
    rank: 'SLURM_PROCID',
    size: ['SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS', 'SLURM_NPROCS'],
    localRank: 'SLURM_LOCALID',
    node: 'SLURM_NODEID',
    nodes: ['SLURM_STEP_NUM_NODES', 'SLURM_NNODES', 'SLURM_JOB_NUM_NODES'],
  },
]

/** Ports made from a Slurm job's id lie in [PORTS, PORTS + PORT_COUNT), below those that systems hand out by themselves. */
const PORTS = 10_000
const PORT_COUNT = 20_000
const MAX_PORT = 65_535

/**
 * The first family with both a rank and a size tells; one alone says nothing (a shell in a Slurm allocation has SLURM_PROCID). Arguments
 * win over variables, MASTER_ADDR and MASTER_PORT over what a family derives; with a rank and size as arguments no family is asked.
 * Null where nobody has started this process as a rank.
 * @throws ERR_ARGUMENT where a value is no integer or out of range, or where RANK or WORLD_SIZE is set alone.
 */
export function discoverRank(env: Environment, explicit: Partial<RankPlace> = {}): DiscoveredRank | null {
  const reader = new Reader(env)
  const given = Object.fromEntries(Object.entries(explicit).filter(([, value]) => value !== undefined)) as Partial<RankPlace>
  if ((given.rank === undefined) !== (given.size === undefined)) {
    const [there, absent] = given.rank === undefined ? ['size', 'rank'] : ['rank', 'size']
    throw new ArgumentError(`Expected both a rank and a size, or neither, but received only ${there}; give ${absent} too`)
  }
  const told = given.rank === undefined ? fromFamilies(reader) : { family: 'rankmesh' as const }
  if (told === null) return null
  const found = {
    ...NOWHERE,
    ...told,
    ...definedOnly({ masterAddr: reader.text('MASTER_ADDR'), masterPort: reader.integer('MASTER_PORT', 1, MAX_PORT) }),
    ...given,
  } as RankPlace & { family: LauncherFamily }
  if (Object.keys(given).length > 0) checkPlace(found)
  return { ...found, from: reader.used }
}

const NOWHERE = {
  localRank: undefined,
  localSize: undefined,
  node: undefined,
  nodes: undefined,
  masterAddr: undefined,
  masterPort: undefined,
}

type Told = Partial<RankPlace> & { family: LauncherFamily }

function fromFamilies(reader: Reader): Told | null {
  for (const variables of FAMILIES) {
    const sizeName = reader.first(variables.size)
    if (!reader.has(variables.rank) || sizeName === undefined) continue
    const size = reader.integer(sizeName, 1) as number
    const rank = reader.integer(variables.rank, 0, size - 1, `${sizeName} is ${size}`) as number
    const nodesName = reader.first(variables.nodes ?? [])
    const nodes = nodesOf(reader.integer(nodesName, 1), size)
    const node = reader.integer(variables.node, 0, (nodes ?? size) - 1, nodes === undefined ? `${size} ranks` : `${nodes} nodes`)
    const localSize =
      variables.family === 'slurm' ? slurmLocalSize(reader, { size, node, nodes }) : reader.integer(variables.localSize, 1, size)
    const localRank = reader.integer(variables.localRank, 0, (localSize ?? size) - 1, `${localSize ?? size} ranks`)
    const family = variables.family === 'torchrun' && reader.text('RANKMESH_RUN_ID') ? 'rankmesh' : variables.family
    return { family, rank, size, localRank, localSize, node, nodes, ...(family === 'slurm' && slurmMaster(reader)) }
  }
  for (const [there, absent] of [
    ['RANK', 'WORLD_SIZE'],
    ['WORLD_SIZE', 'RANK'],
  ] as const) {
    if (reader.has(there))
      throw new ArgumentError(`${there} is ${JSON.stringify(reader.text(there))} but ${absent} is not set; set both, or neither`)
  }
  return null
}

/** The number of nodes; what exceeds the ranks counts the nodes of a whole allocation, which says nothing about this step of it. */
function nodesOf(nodes: number | undefined, size: number): number | undefined {
  return nodes !== undefined && nodes <= size ? nodes : undefined
}

/** Tasks on this node, where the lists of counts are those of this step: they add up to its size. */
function slurmLocalSize(reader: Reader, { size, node, nodes }: { size: number } & Pick<Told, 'node' | 'nodes'>): number | undefined {
  if (node === undefined) return undefined
  for (const name of ['SLURM_STEP_TASKS_PER_NODE', 'SLURM_TASKS_PER_NODE']) {
    if (!reader.has(name)) continue
    const counts = expandTasksPerNode(reader.peek(name) as string, name)
    if (counts.length > node && counts.reduce((a, b) => a + b, 0) === size) return reader.use(name, counts[node])
  }
  const each = reader.peek('SLURM_NTASKS_PER_NODE')
  return nodes !== undefined && each !== undefined && Number(each) * nodes === size
    ? reader.use('SLURM_NTASKS_PER_NODE', Number(each))
    : undefined
}

/** The first host of the step (where its rank 0 is), and a port that all its processes derive alike from the ids of job and step. */
function slurmMaster(reader: Reader): Partial<RankPlace> {
  const hosts = reader.first(['SLURM_STEP_NODELIST', 'SLURM_JOB_NODELIST', 'SLURM_NODELIST'])
  const job = reader.integer(reader.first(['SLURM_JOB_ID', 'SLURM_JOBID']), 0)
  const step = reader.integer('SLURM_STEP_ID', 0) ?? 0
  return {
    masterAddr: hosts && expandHosts(reader.text(hosts) as string, hosts)[0],
    masterPort: job === undefined ? undefined : PORTS + ((job + 7919 * step) % PORT_COUNT),
  }
}

/** Reads variables and remembers which; empty ones are not there. */
class Reader {
  readonly used: string[] = []
  readonly #env: Environment

  constructor(env: Environment) {
    this.#env = env
  }

  has(name: string): boolean {
    return this.peek(name) !== undefined
  }

  peek(name: string): string | undefined {
    return this.#env[name] || undefined
  }

  first(names: readonly string[]): string | undefined {
    return names.find((name) => this.has(name))
  }

  use<T>(name: string, value: T): T {
    if (!this.used.includes(name)) this.used.push(name)
    return value
  }

  text(name: string): string | undefined {
    const text = this.peek(name)
    return text === undefined ? undefined : this.use(name, text)
  }

  /** Undefined where `name` is or where it is not set. `because` explains the bounds. */
  integer(name: string | undefined, min: number, max: number = Number.MAX_SAFE_INTEGER, because?: string): number | undefined {
    const text = name === undefined ? undefined : this.text(name)
    if (name === undefined || text === undefined) return undefined
    const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN
    if (value >= min && value <= max) return value
    const range = max === Number.MAX_SAFE_INTEGER ? `an integer of at least ${min}` : `an integer in [${min}, ${max}]`
    throw new ArgumentError(
      `Expected ${range} for the variable ${name}${because ? ` (${because})` : ''} but received ${JSON.stringify(text)}`,
    )
  }
}

/** Of a place that arguments had a part in. */
function checkPlace({ rank, size, localRank, localSize, node, nodes, masterAddr, masterPort }: RankPlace): void {
  checkInteger('size', size, 1)
  checkInteger('rank', rank, 0, size - 1)
  if (localSize !== undefined) checkInteger('localSize', localSize, 1, size)
  if (localRank !== undefined) checkInteger('localRank', localRank, 0, (localSize ?? size) - 1)
  if (nodes !== undefined) checkInteger('nodes', nodes, 1, size)
  if (node !== undefined) checkInteger('node', node, 0, (nodes ?? size) - 1)
  if (masterPort !== undefined) checkInteger('masterPort', masterPort, 1, MAX_PORT)
  if (masterAddr !== undefined && (typeof masterAddr !== 'string' || masterAddr === ''))
    throw invalidArgument('masterAddr', 'the name or address of a host', masterAddr)
}

function definedOnly<T extends object>(values: T): Partial<T> {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as Partial<T>
}
