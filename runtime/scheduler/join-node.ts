// A process that a launcher has started becomes a rank: it meets its peers at the store, and is joined to them by memory or by gloo.
import { randomUUID } from 'node:crypto'
import { lookup } from 'node:dns/promises'
import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { hostname } from 'node:os'
import { deserialize, serialize } from 'node:v8'
import { MAX_TIMEOUT_MS } from '../comm/rendezvous.ts'
import { connectGlooWire } from '../comm/wire/gloo-wire-node.ts'
import { connectHybridWire } from '../comm/wire/hybrid-wire.ts'
import { SharedWire } from '../comm/wire/shared-wire.ts'
import { shmPlace } from '../comm/wire/shm-place.ts'
import { StoreClient } from '../comm/wire/store-client-node.ts'
import type { Fault } from '../comm/wire/store-protocol.ts'
import { StoreServer } from '../comm/wire/store-server-node.ts'
import { rankToken } from '../comm/wire/token-node.ts'
import { type Wait, type Wire, waitFor } from '../comm/wire.ts'
import type { Addon } from '../core/addon.ts'
import { addonReport, loadAddon } from '../core/addon-node.ts'
import { ArgumentError, BackendUnavailableError, describe, RankFailedError } from '../core/errors.ts'
import { type CarriedError, carriedError } from './carried-error.ts'
import type { DiscoveredRank } from './discovery.ts'
import type { Program } from './launch.ts'
import { isEcho } from './launch-local.ts'
import type { RunRank } from './placements.ts'

/** Bytes of an outcome that go into one frame of the store. */
const PART = 512 * 1024
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
    const wire = await orTell(store.client, place.rank, () => connect(addon as Addon, store.client, place, wait))
    const stop = program.signal ?? new AbortController().signal
    const outcome = await runRank(wire, program, stop).then(
      (value): Outcome => ({ value }),
      (error): Outcome => ({ error: carriedError.to(error), cause: error }),
    )
    const outcomes = await unlessLost(store.client, exchange(store.client, place, outcome)).catch((lost) => {
      throw 'cause' in outcome ? outcome.cause : lost
    })
    if ('cause' in outcome && !isEcho(outcome.cause)) throw outcome.cause
    const failures = outcomes.flatMap((each) => ('error' in each ? [carriedError.from(each.error)] : []))
    if (failures.length > 0) throw failures.find((error) => !isEcho(error)) ?? failures[0]
    return outcomes.map((each) => (each as { value: T }).value)
  } finally {
    await store.end()
  }
}

/** What became of a rank. `cause` is the error itself, where it was thrown. */
type Outcome = { value: unknown } | { error: CarriedError; cause?: unknown }

/**
 * Every rank's outcome, through the store: the program's own groups may have ended by now. Waits as long as it takes the others, as `launch` waits
 * for all ranks. @throws ERR_RANK_FAILED where a rank is gone without one.
 */
async function exchange(client: StoreClient, { rank, size }: DiscoveredRank, outcome: Outcome): Promise<Outcome[]> {
  const { cause: _, ...told } = outcome as { cause?: unknown }
  const bytes = encodeOutcome(told as Outcome, rank)
  for (let at = 0; at < bytes.byteLength; at += PART) await client.set(`outcome/${rank}/${at / PART}`, bytes.subarray(at, at + PART))
  await client.set(`outcome/${rank}`, encoder.encode(String(bytes.byteLength)))
  const outcomeOf = async (r: number): Promise<Outcome> => {
    const length = Number(decoder.decode(await client.get(`outcome/${r}`, MAX_TIMEOUT_MS)))
    const whole = new Uint8Array(length)
    for (let at = 0; at < length; at += PART) whole.set(await client.get(`outcome/${r}/${at / PART}`, GRACE_MS), at)
    return deserialize(whole) as Outcome
  }
  return Promise.all(Array.from({ length: size }, (_, r) => outcomeOf(r)))
}

/** `work` that needs all ranks: fails as soon as one of them is gone. */
async function unlessLost<T>(client: StoreClient, work: Promise<T>): Promise<T> {
  let stop = (): void => {}
  const lost = new Promise<never>((_, reject) => {
    const hear = ({ scope, message, rank }: Fault): void => {
      if (scope === undefined) reject(new RankFailedError(message, { rank }))
    }
    client.faults.forEach(hear)
    stop = client.onFault(hear)
  })
  try {
    return await Promise.race([work, lost])
  } finally {
    stop()
    work.catch(() => {}) // told already
  }
}

/** What fails on this rank before it is in a group, the others hear through the store. */
async function orTell<T>(client: StoreClient, rank: number, work: () => Promise<T>): Promise<T> {
  try {
    return await unlessLost(client, work())
  } catch (error) {
    const why = error instanceof Error ? `${error.name}: ${error.message}` : describe(error)
    if (client.fault === null) await client.fail({ code: 'ERR_RANK_FAILED', message: `Rank ${rank} failed: ${why}`, rank }).catch(() => {})
    throw error
  }
}

function encodeOutcome(outcome: Outcome, rank: number): Uint8Array {
  try {
    return serialize(outcome)
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    const message = `Rank ${rank} returned what cannot be cloned: ${why}; return data, not tensors or functions`
    return serialize({ error: carriedError.to(new ArgumentError(message, { rank })) })
  }
}

interface Meeting {
  client: StoreClient
  /** All ranks have finished: whoever hosts the store goes last. */
  end(): Promise<void>
}

/** The store of all ranks: hosted by rank 0, or, where MASTER_ADDR is no address of its machine, by a process on the machine that has it. */
async function meet(place: DiscoveredRank, { deadline, signal }: Wait): Promise<Meeting> {
  const { rank, size } = place
  const [host, port] = addressOf(place)
  const token = rankToken()
  const elsewhere = rank > 0 && place.localRank === 0 && !/^(localhost|127\.|::1)/.test(host)
  const server = rank === 0 || elsewhere ? await listen({ host, port, token, size, rank }, rank === 0 && place.nodes === 1) : null
  const timeoutMs = Math.max(1, deadline - performance.now())
  let client: StoreClient | undefined
  try {
    client = await StoreClient.connect({ host, port, token, timeoutMs, signal })
    await client.join(rank, size)
  } catch (error) {
    client?.close()
    await server?.close()
    throw error
  }
  return {
    client,
    async end() {
      // Nobody leaves before the store takes no more connections: the next launch of a program must not find the last one's store.
      const closing = server?.close(GRACE_MS)
      const told = server ? client.set('over', encoder.encode('over')) : client.get('over', GRACE_MS)
      await told.catch(() => {}) // the store, or whoever hosts it, may be gone
      await client.leave().catch(() => {})
      client.close()
      await closing
    },
  }
}

/** Null where somebody else hosts it: the address is another machine's, or another process of this one has been first. */
async function listen(options: Parameters<typeof StoreServer.listen>[0], alone: boolean): Promise<StoreServer | null> {
  try {
    return await StoreServer.listen({ ...options, host: await listeningAddress(options.host as string) })
  } catch (error) {
    const code = (error as { cause?: { code?: unknown } }).cause?.code
    if (alone || (code !== 'EADDRNOTAVAIL' && code !== 'EADDRINUSE')) throw error
    return null
  }
}

/** A machine's own name may mean its loopback to itself, where the others would not find it: it then listens on all its addresses. */
async function listeningAddress(host: string): Promise<string> {
  if (isIP(host) !== 0 || host === 'localhost') return host
  const { address } = await lookup(host)
  return /^(127\.|::1$)/.test(address) ? '0.0.0.0' : host
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
  const { gloo } = addon.features()
  if (nodes.length > 1 && !gloo.available)
    throw new BackendUnavailableError(`Ranks on several machines need gloo in the native addon: ${gloo.detail}`)
  const local = await connectLocal(addon, store, mine, rank, wait)
  if (nodes.length === 1) return local
  const host = process.env.RANKMESH_HOST ?? store.localAddress
  const members = names.map((_, r) => r)
  try {
    const across = await connectGlooWire({ addon, store, rank, members, host, scope: 'world' }, wait)
    if (nodes.length < size) return await connectHybridWire({ local, across, nodes }, wait)
    local.close()
    return across
  } catch (error) {
    local.close()
    throw error
  }
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
