// PeerMemory: the workspace that a rank brings to collectives of its own kernels, those of its peers as its device sees them, and what the
// kernels tell the host.
import { OutOfMemoryError } from '../../core/errors.ts'
import { Block, type EngineStorage } from '../../device/engine/memory.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import type { CudaDevice } from './device.ts'
import { ALARM_AT, type PeerRoom, packetsAt, workspaceBytes } from './plan.ts'

/** Bits of what a kernel tells, above one for each rank that did not arrive; see native/cuda/peer_arguments.h. */
export const EXPIRED: number = 1 << 16
export const ABORTED: number = 1 << 18

export class PeerMemory {
  readonly #device: CudaDevice
  readonly #own: EngineStorage
  readonly #imported: EngineStorage[] = []
  readonly #told: Block
  readonly #words: Uint32Array
  /** The workspaces by rank, and where kernels tell: the operands that all commands begin with. */
  readonly places: Place[] = []

  /** New memory on a device, set up for the first call. @throws ERR_OUT_OF_MEMORY. */
  constructor(device: CudaDevice, room: PeerRoom, ranks: number) {
    const { engine, memory } = device
    this.#device = device
    const bytes = workspaceBytes(room, ranks)
    this.#own = memory.adopt(allocated(device, bytes), bytes)
    const { id, buffer } = engine.allocateHost(64)
    this.#told = new Block(id, 64, buffer)
    this.#words = new Uint32Array(buffer)
    this.#words.fill(0)
    const packets = packetsAt(room)
    engine.fill(this.#own.block.id, 0, packets, 0)
    engine.fill(this.#own.block.id, packets, bytes - packets, 0xff)
  }

  /** What the other ranks need to import it. */
  exported(): Uint8Array {
    return this.#device.engine.exportMemory(this.#own.block.id)
  }

  /** Makes the peers' memory this device's too; `exported` by rank. Gives the driver's reason where that cannot be, else null. */
  join(rank: number, exported: readonly Uint8Array[]): string | null {
    const { engine, memory } = this.#device
    for (const [peer, bytes] of exported.entries()) {
      let storage = this.#own
      if (peer !== rank) {
        try {
          const { id, byteLength } = engine.importMemory(bytes)
          storage = memory.adopt(id, byteLength)
        } catch (cause) {
          const why = cause instanceof Error ? cause.message : String(cause)
          return `rank ${rank} cannot use the memory of rank ${peer}'s device: ${why}`
        }
        this.#imported.push(storage)
      }
      this.places.push({ block: storage.block, offset: 0 })
    }
    this.places.push({ block: this.#told, offset: 0 })
    return null
  }

  /** What this rank's kernels have told, as bits of a status; 0 while all is well. */
  get told(): number {
    return this.#words[0] as number
  }

  /** Ends what this rank's kernels wait for, now and from now on. */
  alarm(): void {
    if (!this.#device.failure) this.#device.engine.poke(this.#own.block.id, ALARM_AT, ABORTED)
  }

  /** Lets go of the peers' memory, and with `whole` of its own: not while any rank's kernel runs. */
  close(whole: boolean): void {
    if (this.#device.failure) return
    for (const storage of this.#imported.splice(0)) storage.release()
    if (!whole) return
    this.#own.release()
    this.#device.engine.free(this.#told.id, this.#told.bytes?.buffer ?? null)
  }
}

function allocated({ engine, description }: CudaDevice, bytes: number): number {
  try {
    return engine.allocate(bytes).id
  } catch (cause) {
    throw new OutOfMemoryError(`${description} could not allocate ${bytes} bytes for collectives; free tensors first`, { cause })
  }
}
