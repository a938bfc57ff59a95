// PeerMemory: the workspace that a rank brings to collectives of its own kernels, on its device or in pinned memory; those of its peers as its device
// sees them; and what the kernels keep for themselves and tell the host.
import type { CudaEngine } from '../../core/addon.ts'
import { BackendUnavailableError, OutOfMemoryError } from '../../core/errors.ts'
import type { CudaDevice } from '../../device/cuda/device.ts'
import { Block, type EngineStorage } from '../../device/engine/memory.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import { ALARM_AT, LEFT_AT, type PeerPlan, packetsAt, STATE_BYTES, workspaceBytes } from './plan.ts'

/** Bits of what a kernel tells, above one for each rank that did not arrive; see native/cuda/peer_arguments.h. */
export const EXPIRED: number = 1 << 16
export const ABORTED: number = 1 << 18

/** What one rank gives the others. */
export interface Exported {
  own: Uint8Array
  multicast: Uint8Array | null
}

export class PeerMemory {
  readonly #device: CudaDevice
  readonly #own: EngineStorage
  #multicast: EngineStorage | null = null
  readonly #state: EngineStorage
  readonly #imported: EngineStorage[] = []
  readonly #told: Block
  readonly #words: Uint32Array
  /** The workspaces by rank, this rank's state, where its kernels tell, and the multicast: the operands that all commands begin with. */
  readonly places: Place[] = []
  readonly #plan: PeerPlan
  /** Why there is no multicast, where one was tried first. */
  refused: string | null = null
  /** Times that all ranks must be seen to have left. */
  #looks = 0

  /** New memory, set up for the first call. @throws ERR_OUT_OF_MEMORY; ERR_BACKEND_UNAVAILABLE where the driver has none of this kind. */
  constructor(device: CudaDevice, plan: PeerPlan) {
    const { engine, memory } = device
    this.#device = device
    this.#plan = plan
    const bytes = workspaceBytes(plan, plan.ranks)
    this.#own = memory.adopt(allocated(device, plan, bytes), bytes)
    this.#state = device.storage(STATE_BYTES, true)
    const { id, buffer } = engine.allocateHost(64)
    this.#told = new Block(id, 64, buffer)
    this.#words = new Uint32Array(buffer)
    this.#words.fill(0)
    const packets = packetsAt(plan)
    engine.fill(this.#state.block.id, 0, STATE_BYTES, 0)
    engine.fill(this.#own.block.id, 0, packets, 0)
    engine.fill(this.#own.block.id, packets, bytes - packets, 0xff)
  }

  /** What the other ranks need to import it, and, of the first rank, the multicast. @throws what the driver says */
  exported(rank: number): Exported {
    const { engine, memory } = this.#device
    const { ranks, multicast } = this.#plan
    if (multicast && rank === 0) {
      const bytes = workspaceBytes(this.#plan, ranks)
      this.#multicast = memory.adopt(engine.createMulticast(bytes, ranks).id, bytes)
    }
    return { own: engine.exportMemory(this.#own.block.id), multicast: this.#multicast && engine.exportMemory(this.#multicast.block.id) }
  }

  /** Makes the peers' memory this device's too; `exported` by rank. Gives the driver's reason where that cannot be, else null. */
  join(rank: number, exported: readonly Exported[]): string | null {
    const { engine, memory } = this.#device
    for (const [peer, { own: bytes, multicast }] of exported.entries()) {
      let storage = this.#own
      if (peer !== rank) {
        try {
          const { id, byteLength } = engine.importMemory(bytes)
          storage = memory.adopt(id, byteLength)
          this.#imported.push(storage)
          if (multicast) this.#multicast = memory.adopt(engine.importMemory(multicast).id, byteLength)
        } catch (cause) {
          const why = cause instanceof Error ? cause.message : String(cause)
          return `rank ${rank} cannot use the memory of rank ${peer}: ${why}`
        }
      }
      this.places.push({ block: storage.block, offset: 0 })
    }
    this.places.push({ block: this.#state.block, offset: 0 }, { block: this.#told, offset: 0 }, this.nothing)
    return null
  }

  /** Once all ranks have joined: binds this rank's memory to the multicast, if there is one. Gives the driver's reason as `join`. */
  bind(rank: number): string | null {
    if (!this.#multicast) return null
    const { block } = this.#multicast
    try {
      this.#device.engine.bindMulticast(block.id, this.#own.block.id)
    } catch (cause) {
      return `rank ${rank} cannot bind its memory: ${cause instanceof Error ? cause.message : String(cause)}`
    }
    this.places[this.places.length - 1] = { block, offset: 0 }
    return null
  }

  /** Whether its kernels store to all workspaces at once. */
  get multicast(): boolean {
    return this.#multicast !== null
  }

  /** Where nothing is read or written. */
  get nothing(): Place {
    return { block: this.#state.block, offset: 0 }
  }

  /** What this rank's kernels have told, as bits of a status; 0 while all is well. */
  get told(): number {
    return this.#words[0] as number
  }

  /** Ends what this rank's kernels wait for, now and from now on. */
  alarm(): void {
    if (!this.#device.failure) this.#device.engine.poke(this.#own.block.id, ALARM_AT, ABORTED)
  }

  /** Gives up everything, where no kernel uses it any more. */
  abandon(): void {
    this.#letGo()
    this.#free()
  }

  /**
   * This rank's kernels have ended, and it starts no more: its peers learn so. Memory of its device goes back once all of them have left too, as
   * theirs may still read it; pinned memory each has for itself. `apart`: some are in other processes, which is looked at twice, since they let go
   * of it after they have told.
   */
  async leave(rank: number, apart: boolean): Promise<void> {
    const { engine } = this.#device
    if (this.#device.failure) return
    if (this.#plan.home === 'pinned') return this.abandon()
    for (const { block } of this.places.slice(0, this.#plan.ranks)) engine.poke(block.id, LEFT_AT + 4 * rank, 1)
    this.#letGo()
    this.#looks = apart ? 2 : 1
    retired.add(this)
    await PeerMemory.sweep(engine)
  }

  /** Gives back what is left of groups that have ended on a device. */
  static async sweep(engine: CudaEngine): Promise<void> {
    await Promise.all([...retired].map((memory) => memory.#device.engine === engine && memory.#sweep()))
  }

  async #sweep(): Promise<void> {
    try {
      const bytes = await this.#device.read(this.#own, LEFT_AT, 4 * this.#plan.ranks)
      const left = new Uint32Array(bytes.buffer, 0, this.#plan.ranks)
      if (!left.every((word) => word !== 0) || --this.#looks > 0 || !retired.delete(this)) return
      this.#free()
    } catch {
      retired.delete(this) // the device is lost, and all of its memory
    }
  }

  #letGo(): void {
    for (const storage of this.#imported.splice(0)) storage.release()
    this.#multicast?.release()
    this.#multicast = null
  }

  #free(): void {
    if (this.#device.failure) return
    this.#own.release()
    this.#state.release()
    this.#device.engine.free(this.#told.id, this.#told.bytes?.buffer ?? null)
  }
}

/** Of groups that have ended, whose ranks have not all left. */
const retired = new Set<PeerMemory>()

function allocated({ engine, description }: CudaDevice, { home, fabric, multicast, ranks }: PeerPlan, bytes: number): number {
  try {
    if (multicast || fabric) return engine.allocateBindable(bytes, multicast ? ranks : 0).id
    return home === 'pinned' ? engine.allocateShared(bytes).id : engine.allocate(bytes).id
  } catch (cause) {
    if (cause instanceof RangeError) {
      const where =
        home === 'pinned'
          ? `The system could not pin ${bytes} bytes for ${description}`
          : `${description} could not allocate ${bytes} bytes`
      throw new OutOfMemoryError(`${where} for collectives; free memory first`, { cause })
    }
    throw new BackendUnavailableError(`${description} takes no memory for collectives: ${cause instanceof Error ? cause.message : cause}`, {
      cause,
    })
  }
}
