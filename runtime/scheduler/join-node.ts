// A process that a launcher has started becomes a rank: it meets its peers at the store, and is joined to them by memory or by gloo.
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { connectGlooWire } from '../comm/wire/gloo-wire-node.ts'
import { connectHybridWire } from '../comm/wire/hybrid-wire.ts'
import { SharedWire } from '../comm/wire/shared-wire.ts'
import { shmPlace } from '../comm/wire/shm-place.ts'
import { StoreClient } from '../comm/wire/store-client-node.ts'
import { StoreServer } from '../comm/wire/store-server-node.ts'
import { rankToken } from '../comm/wire/token-node.ts'
import { type Wait, type Wire, waitFor } from '../comm/wire.ts'
import type { Addon } from '../core/addon.ts'
import { addonReport, loadAddon } from '../core/addon-node.ts'
import { ArgumentError, BackendUnavailableError } from '../core/errors.ts'
import type { DiscoveredRank } from './discovery.ts'
import type { Program } from './launch.ts'
import type { RunRank } from './placements.ts'

/** How long the ranks that host and use the store wait for each other at the end. */
const GRACE_MS = 5000
const encoder = new TextEncoder()
const decoder = new TextDecoder()

/** As one of the processes that a launcher has started: runs main as its rank; all of them get all results. */
export async function join<T>(place: DiscoveredRank, program: Program<T>, runRank: RunRank): Promise<T[]> {
  const { size } = place
  if (program.ranks !== size) {
    throw new ArgumentError(`The program asks for ${program.ranks} ranks, but ${size} processes were started (${place.from.join(', ')})`)
  }
  const addon = loadAddon()
  if (size > 1 && !addon?.features().shm.available) {
    throw new BackendUnavailableError(`Ranks in processes need the native addon; build it with \`${addonReport().command}\``)
  }
  const wait = waitFor(program.timeoutMs, 'connect()', program.signal)
  const store = await meet(place, wait)
  try {
    const wire = await connect(addon as Addon, store.client, place, wait)
    const stop = program.signal ?? new AbortController().signal
    const all: Program<T[]> = { ...program, main: async (context) => context.host.allGather(await program.main(context)) }
    const results = await runRank(wire, all, stop)
    await store.end()
    return results
  } finally {
    store.close()
  }
}

interface Meeting {
  client: StoreClient
  /** All ranks have finished: whoever hosts the store goes last. */
  end(): Promise<void>
  close(): void
}

/** The store of all ranks: hosted by rank 0, or, where MASTER_ADDR is no address of its machine, by a process on the machine that has it. */
async function meet(place: DiscoveredRank, { deadline, signal }: Wait): Promise<Meeting> {
  const { rank, size } = place
  const [host, port] = addressOf(place)
  const token = rankToken()
  const elsewhere = rank > 0 && place.localRank === 0 && !/^(localhost|127\.|::1)/.test(host)
  const server = rank === 0 || elsewhere ? await listen({ host, port, token, size, rank }, rank === 0 && place.nodes === 1) : null
  const timeoutMs = Math.max(1, deadline - performance.now())
  const client = await StoreClient.connect({ host, port, token, timeoutMs, signal })
  const close = (): void => {
    client.close()
    server?.close().catch(() => {})
  }
  try {
    await client.join(rank, size)
  } catch (error) {
    close()
    throw error
  }
  return {
    client,
    close,
    async end() {
      // Nobody leaves before the store takes no more connections: the next launch of a program must not find the last one's store.
      const closing = server?.close(GRACE_MS)
      if (server) await client.set('over', encoder.encode('over'))
      else await client.get('over', GRACE_MS).catch(() => {})
      await client.leave().catch(() => {}) // the store may end before it has answered
      await closing
    },
  }
}

/** Null where somebody else hosts it: the address is another machine's, or another process of this one has been first. */
async function listen(options: Parameters<typeof StoreServer.listen>[0], alone: boolean): Promise<StoreServer | null> {
  try {
    return await StoreServer.listen(options)
  } catch (error) {
    const code = (error as { cause?: { code?: unknown } }).cause?.code
    if (alone || (code !== 'EADDRNOTAVAIL' && code !== 'EADDRINUSE')) throw error
    return null
  }
}

/**
 * MASTER_ADDR and MASTER_PORT. Without an address all ranks are on this machine; the port then follows from what the launcher calls the job.
 * torchrun listens on MASTER_PORT itself, so the next one is taken there.
 */
function addressOf({ family, masterAddr = '127.0.0.1', masterPort }: DiscoveredRank): [string, number] {
  const { env } = process
  if (masterPort !== undefined) return [masterAddr, family === 'torchrun' && env.TORCHELASTIC_RUN_ID ? masterPort + 1 : masterPort]
  const job = env.OMPI_MCA_ess_base_jobid ?? env.PMIX_NAMESPACE ?? env.PMI_JOBID ?? env.HYDI_CONTROL_FD ?? env.SLURM_JOB_ID ?? ''
  let hash = 0
  for (const char of `${job} ${process.getuid?.() ?? ''}`) hash = (Math.imul(hash, 31) + char.charCodeAt(0)) >>> 0
  return [masterAddr, 20_000 + (hash % 10_000)]
}

/** Ranks of one node over its memory, several nodes over gloo. */
async function connect(addon: Addon, store: StoreClient, place: DiscoveredRank, wait: Wait): Promise<Wire> {
  const { rank, size } = place
  const left = (): number => Math.max(1, wait.deadline - performance.now())
  await store.set(`node/${rank}`, encoder.encode(nodeName(place)))
  const names = await Promise.all(Array.from({ length: size }, async (_, r) => decoder.decode(await store.get(`node/${r}`, left()))))
  const nodes = [...new Set(names)].map((name) => names.flatMap((other, r) => (other === name ? [r] : [])))
  const mine = nodes.find((ranks) => ranks.includes(rank)) as number[]
  const local = await connectLocal(addon, store, mine, rank, wait)
  if (nodes.length === 1) return local
  const { gloo } = addon.features()
  if (!gloo.available) throw new BackendUnavailableError(`Ranks on several machines need gloo in the native addon: ${gloo.detail}`)
  const host = process.env.RANKMESH_HOST ?? store.localAddress
  const members = names.map((_, r) => r)
  const across = await connectGlooWire({ addon, store, rank, members, host, scope: 'world' }, wait)
  return mine.length === 1 && nodes.length === size ? across : connectHybridWire({ local, across, nodes }, wait)
}

async function connectLocal(addon: Addon, store: StoreClient, members: readonly number[], rank: number, wait: Wait): Promise<SharedWire> {
  const key = `segment/${members[0]}`
  if (rank === members[0]) await store.set(key, encoder.encode(randomUUID()))
  const name = decoder.decode(await store.get(key, Math.max(1, wait.deadline - performance.now())))
  return SharedWire.connect(shmPlace(addon), name, { rank: members.indexOf(rank), members, parent: null }, wait)
}

/** Equal on the processes that share memory: the launcher's index of the node where it tells one, else what names this machine. */
function nodeName({ node }: DiscoveredRank): string {
  if (node !== undefined) return `node ${node}`
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim() + hostname()
  } catch {
    return hostname()
  }
}
