// Expert parallelism over a group: every rank's tokens to all ranks, and the sum of all experts' outputs back to the tokens' own ranks.
import { ArgumentError, invalidArgument } from '../core/errors.ts'
import type { Tensor } from '../core/tensor.ts'
import type { DeviceComm } from './device-comm.ts'
import type { HostComm } from './host.ts'
import type { MeetOptions } from './rendezvous.ts'

export type DispatchOptions = {
  /** Tokens of each rank, the same list on all ranks; where absent, what they bring. */
  sizes?: readonly number[] | undefined
  /** More tensors with one row for each token. */
  extra?: readonly Tensor[] | undefined
} & MeetOptions

export interface Dispatched {
  /** [all tokens, hidden], tokens in the order of ranks. Without expert parallelism, what was given. */
  hidden: Tensor
  extra: Tensor[]
  /** Tokens of each rank: what `combine` needs. */
  sizes: readonly number[]
}

export interface DispatchedLogits extends Dispatched {
  /** [all tokens, experts]. */
  logits: Tensor
}

export interface DispatchedExperts extends Dispatched {
  /** Weights and ids of each token's experts, [all tokens, experts a token]. */
  weights: Tensor
  ids: Tensor
}

/** Gathers the rows of tensors that have one row for each token of this rank. `expertParallel: false` gives other handles on them. */
export async function dispatchRows(
  comm: DeviceComm,
  host: HostComm,
  expertParallel: boolean,
  tensors: readonly Tensor[],
  { sizes, extra = [], ...options }: DispatchOptions = {},
): Promise<{ rows: Tensor[]; extra: Tensor[]; sizes: readonly number[] }> {
  const all = [...tensors, ...extra]
  if (!expertParallel) {
    const rows = all.map((tensor) => tensor.share())
    return { rows, extra: rows.splice(tensors.length), sizes: [all[0]?.shape[0] ?? 0] }
  }
  const known = sizes ?? (await host.allGather(all[0]?.shape?.[0] ?? -1, options)) // -1: allGatherV refuses it, on every rank
  const rows = await comm.allGatherV(all, { ...options, dim: 0, sizes: known })
  return { rows, extra: rows.splice(tensors.length), sizes: known }
}

/** The sum over ranks of their experts' outputs [all tokens, ...], of which each rank gets its own tokens' rows. */
export async function combineRows(
  comm: DeviceComm,
  expertParallel: boolean,
  hidden: Tensor,
  { sizes, ...options }: { sizes?: readonly number[] | undefined } & MeetOptions,
): Promise<Tensor> {
  if (!expertParallel) return hidden.share()
  if (sizes === undefined) throw new ArgumentError('Expected sizes for combine but received undefined; pass the sizes that dispatch gave')
  return comm.reduceScatterV(hidden, { ...options, dim: 0, sizes })
}

/** Modules that want to hear of a communicator before it is used. */
export interface CommunicatingModule<C> {
  prepareCommunication?(comm: C): unknown
}

export type CommunicatingModel<C> = Iterable<CommunicatingModule<C>> | { modules(): Iterable<CommunicatingModule<C>> }

/** Calls `prepareCommunication(comm)` on each module that has it, one after the other. @returns how many had it. */
export async function prepareModules<C>(comm: C, model: CommunicatingModel<C>): Promise<number> {
  const modules = typeof (model as { modules?: unknown })?.modules === 'function' ? (model as { modules(): never }).modules() : model
  if (typeof (modules as Iterable<unknown>)?.[Symbol.iterator] !== 'function') {
    throw invalidArgument('model', 'an iterable of modules, or an object with modules(),', model)
  }
  let prepared = 0
  for (const module of modules as Iterable<CommunicatingModule<C>>) {
    if (typeof module?.prepareCommunication !== 'function') continue
    await module.prepareCommunication(comm)
    prepared++
  }
  return prepared
}
