// Staging: one collective through host memory on its way: what it reads, exchanges and writes.
import { blockLength, type DType, dtypeSize } from '../../core/dtype.ts'
import { type Shape, sizeOf } from '../../core/shape.ts'
import type { Storage } from '../../core/storage.ts'
import { Tensor } from '../../core/tensor.ts'
import type { Span } from '../../core/tree.ts'
import { EngineDevice } from '../../device/engine/device.ts'
import { engineStorage } from '../../device/engine/memory.ts'
import { shareStorage } from '../checks.ts'
import { endToEnd, exchangeParts, type Link } from '../link.ts'
import type { Operand, Source, StagedGroup, Target } from './group.ts'
import type { JoinedSite } from './joined-site.ts'

/** A result on the host. */
export interface Result {
  dtype: DType
  /** All of it, or where StagedGroup.part says so, that part. */
  bytes: Uint8Array
  /** Elements that are cut nowhere; see JoinedSite.cut. */
  unit?: number | undefined
}

/** The results that it hands out are given back if it fails. */
export class Staging {
  readonly #group: StagedGroup
  readonly #link: Link | null
  readonly #call: string
  readonly #timeoutMs: number | undefined
  readonly #results: Tensor[] = []

  private constructor(group: StagedGroup, link: Link | null, call: string, timeoutMs: number | undefined) {
    this.#group = group
    this.#link = link
    this.#call = call
    this.#timeoutMs = timeoutMs
  }

  static async run<R>(
    group: StagedGroup,
    link: Link | null,
    call: string,
    timeoutMs: number | undefined,
    action: (staging: Staging) => Promise<R>,
  ): Promise<R> {
    const staging = new Staging(group, link, call, timeoutMs)
    try {
      return await action(staging)
    } catch (error) {
      for (const tensor of staging.#results) tensor.dispose()
      throw error
    }
  }

  /** The bytes of all sources, in their order, wherever they are: until the next call of `all` or `share`. */
  async all(sources: readonly Source[]): Promise<Uint8Array[]> {
    return this.share(sources, await this.own(sources.filter(({ rank }) => this.#group.here.includes(rank))))
  }

  /**
   * The bytes of sources that are here; all devices are asked at the same time. Those of a CPU rank are where they lie: not to be written, nor
   * to be used after the collective.
   */
  async own(sources: readonly Source[]): Promise<Uint8Array[]> {
    const read = async ({ rank, buffer, offset, byteLength }: Source): Promise<Uint8Array> => {
      const device = this.#group.device(rank)
      if (byteLength === 0) return new Uint8Array(0)
      if (!(device instanceof EngineDevice)) return device.read(buffer, offset, byteLength)
      await device.sync()
      const { block } = engineStorage(device.memory, buffer)
      return block.bytes && block.idle ? block.bytes.subarray(offset, offset + byteLength) : device.read(buffer, offset, byteLength)
    }
    return settled(sources.map(read))
  }

  /**
   * Elements of an operand that is alike on all ranks, read once: on the rank that leads, or where that is one of a joined site, from each of its
   * ranks a part. Not to be written.
   */
  async alike(operands: readonly Operand[], span: Span, unit: number): Promise<Uint8Array> {
    const { apart, joined, lead } = this.#group
    const [{ dtype, count }] = operands as [Operand]
    const width = dtypeSize(dtype)
    const site = apart ? undefined : joined.find(({ ranks }) => ranks.includes(lead))
    const spans = site?.cut(count, unit) ?? [span]
    const sources = spans.map((part, i) => {
      const operand = operands[site && spans.length > 1 ? (site.ranks[i] as number) : lead] as Operand
      return { ...operand, offset: operand.offset + part.start * width, byteLength: part.count * width }
    })
    return endToEnd(await this.own(sources))
  }

  /** Every rank's bytes for every rank: `own` are those of the ranks that are here, in the order of `parts`, whose lengths all ranks know. */
  async share(parts: readonly { rank: number; byteLength: number }[], own: readonly Uint8Array[]): Promise<Uint8Array[]> {
    if (!this.#link || parts.every(({ byteLength }) => byteLength === 0)) return parts.map((_, i) => own[i] ?? new Uint8Array(0))
    const lane = parts.map(({ rank, byteLength }) => ({ member: rank, byteLength }))
    return exchangeParts(this.#link, this.#call, this.#timeoutMs, lane, own)
  }

  /** Overwrites an operand of a rank that is here. */
  write({ rank, buffer, offset }: Source, bytes: Uint8Array): void {
    if (bytes.byteLength > 0) this.#group.device(rank).write(buffer, offset, bytes)
  }

  /** As `write`, once for those that are the same memory; from a rank's own tensor where `gathered` has one. */
  writeEach(places: readonly Source[], bytes: Uint8Array, gathered: readonly Tensor[] = []): void {
    const here = places.filter(({ rank }) => this.#group.here.includes(rank))
    for (const [i, place] of here.entries()) {
      const before = here.slice(0, i)
      if (before.some(({ buffer, offset }) => buffer === place.buffer && offset === place.offset)) continue
      const whole = gathered[place.rank]
      if (whole) this.#copy(whole, place)
      else this.write(place, bytes)
    }
  }

  /** Overwrites the ranks' operands, all of so many elements, with a result; joined sites bring its parts together. */
  async replace(places: readonly Source[], count: number, result: Result): Promise<void> {
    const gathered = await this.#gathered(count, result)
    this.writeEach(places, result.bytes, gathered)
    for (const whole of gathered) whole?.dispose()
  }

  /** A result that belongs to one rank: in memory of its own, or in some that was made for it. */
  result(rank: number, shape: Shape, dtype: DType, bytes: Uint8Array, storage: Storage | null = null): Tensor {
    const device = this.#group.device(rank)
    storage?.retain()
    const tensor = storage ? new Tensor(device, storage, shape, dtype) : Tensor.fromBytes(bytes, shape, dtype, device)
    this.#results.push(tensor)
    if (storage) {
      shareStorage(storage, false)
      device.write(storage, 0, bytes)
    }
    return tensor
  }

  /**
   * The result of all ranks: stored once on each device, read-only, in memory that `place` has for it there, or new; of a rank that brought a
   * target, there. Joined sites bring its parts together. By rank.
   */
  async spread(
    shape: Shape,
    result: Result,
    targets: readonly (Target | undefined)[] = [],
    place: (rank: number) => Storage | null = () => null,
  ): Promise<Tensor[]> {
    const { dtype, bytes } = result
    const gathered = await this.#gathered(sizeOf(shape), result)
    const results: Tensor[] = []
    this.writeEach(
      targets.flatMap((target) => target?.operand ?? []),
      bytes,
      gathered,
    )
    for (const { ranks } of this.#group.sites) {
      let first: Tensor | null = null
      for (const rank of ranks.filter((own) => this.#group.here.includes(own))) {
        const target = targets[rank]
        if (target) {
          results[rank] = target.tensor
        } else if (first) {
          results[rank] = this.#handle(first, rank)
        } else {
          const whole = gathered[rank]
          first = whole ? this.#landed(whole, rank, shape, dtype, place(rank)) : this.result(rank, shape, dtype, bytes, place(rank))
          results[rank] = first
        }
      }
      if (first) shareStorage(first.storage)
    }
    for (const whole of gathered) whole?.dispose()
    return results
  }

  /**
   * By rank, what JoinedSite.sum gives for a site's ranks. Other ranks wait for it as long as the call may take: what goes wrong in it is known
   * before that, so that they hear whose fault it is.
   */
  sumParts(site: JoinedSite, operands: readonly Operand[], spans: readonly Span[]): Promise<Uint8Array[]> {
    const timeoutMs = this.#timeoutMs ?? this.#link?.timeoutMs
    return site.sum(operands, spans, { timeoutMs: this.#link && timeoutMs ? Math.ceil(0.75 * timeoutMs) : timeoutMs })
  }

  /** Memory for each rank that is here, or one for all ranks of a device. By rank. */
  allocate(shape: Shape, dtype: DType, shared: boolean): Tensor[] {
    const results: Tensor[] = []
    for (const rank of this.#group.here) {
      const first = results[this.#group.home(rank).ranks[0] as number]
      if (shared && first) {
        results[rank] = this.#handle(first, rank)
        continue
      }
      const tensor = Tensor.empty(shape, { dtype, device: this.#group.device(rank) })
      this.#results.push(tensor)
      results[rank] = tensor
    }
    return results
  }

  /** A result of so many elements on the devices of joined sites, as bytes, by rank; nothing for ranks that get it otherwise. */
  async #gathered(count: number, { dtype, bytes, unit }: Result): Promise<Tensor[]> {
    const gathered: Tensor[] = []
    if (blockLength(dtype) > 1) return gathered
    const width = dtypeSize(dtype)
    const { start } = bytes.byteLength === count * width ? { start: 0 } : this.#group.part(count, unit)
    for (const site of this.#group.joined) {
      const spans = site.here.length > 0 ? site.cut(count, unit) : null
      if (!spans) continue
      const partOf = (span: Span): Uint8Array => bytes.subarray((span.start - start) * width, (span.start - start + span.count) * width)
      const wholes = await site.gather(spans, partOf, { timeoutMs: this.#timeoutMs })
      for (const [i, rank] of site.here.entries()) gathered[rank] = wholes[i] as Tensor
    }
    return gathered
  }

  /** Bytes of a joined site as a rank's result, in memory of their own or in some that was made for it. */
  #landed(whole: Tensor, rank: number, shape: Shape, dtype: DType, storage: Storage | null): Tensor {
    const place = storage ?? whole.storage
    place.retain()
    const tensor = new Tensor(this.#group.device(rank), place, shape, dtype, storage ? 0 : whole.byteOffset)
    this.#results.push(tensor)
    if (storage) {
      shareStorage(storage, false)
      this.#copy(whole, { rank, buffer: storage, offset: 0, byteLength: whole.byteLength })
    }
    return tensor
  }

  /** Copies bytes on a rank's device. */
  #copy(whole: Tensor, { rank, buffer, offset, byteLength }: Source): void {
    buffer.retain()
    const device = this.#group.device(rank)
    using place = new Tensor(device, buffer, [byteLength], 'uint8', offset)
    device.copy(whole, place)
  }

  /** A rank's own handle on a tensor of its device. */
  #handle({ storage, shape, dtype, byteOffset }: Tensor, rank: number): Tensor {
    storage.retain()
    const tensor = new Tensor(this.#group.device(rank), storage, shape, dtype, byteOffset)
    this.#results.push(tensor)
    return tensor
  }
}

/** As Promise.all, once all have ended: what they read stays in use till then. */
export async function settled<T>(work: readonly Promise<T>[]): Promise<T[]> {
  return (await Promise.allSettled(work)).map((outcome) => {
    if (outcome.status === 'rejected') throw outcome.reason
    return outcome.value
  })
}
