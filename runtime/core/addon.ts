// The native addon as TypeScript sees it: every function it exports, typed here and nowhere else. Not there in a page.

/** Something the addon may have been built with. */
export interface Feature {
  available: boolean
  /** Which version or kind, or why it is absent and what would bring it. */
  detail: string
}

export interface Features {
  shm: Feature
  gloo: Feature
  /** Products of the CPU device whose operands may be rounded to bfloat16. */
  onednn: Feature
  cuda: Feature
  nccl: Feature
}

/** How a wait ended: all have come, the time is over, or the alarm word is not what it was. */
export const ARRIVED = 0
export const EXPIRED = 1
export const ALARMED = 2
export type WaitResult = 0 | 1 | 2
/** Of a reduction: two ranks brought different signatures, lengths, kinds or ops; or one of them is in a round of another kind. */
export const MISMATCHED = 3
/** Of a reduction: some ranks' arrays lie in another block than others', or at another place in it, or in no block. */
export const ELSEWHERE = 4
export type ReduceResult = WaitResult | 3 | 4

/**
 * One lane in memory that its members share. `words` views all of that memory as 32-bit words (pass typed arrays into the addon, never
 * buffers); member m's epoch word is `words[at + m * 32]`, the word behind it counts who sleeps on it. Of the words behind those two, pairs
 * for even and odd epochs, a reduction writes +2 signature, +4 elements, +6 kind and op, +8 block, +10 place in the block.
 */
export interface LaneWords {
  words: Int32Array
  at: number
  members: number
  /** This rank's index among them. */
  me: number
  /** Index of the word that changes when something has happened that every waiter must look at. */
  alarm: number
}

/** A segment of memory that processes of one machine and user share. */
export interface Segment {
  /** The memory as seen by this thread. Stays mapped as long as anything refers to it; not to be transferred. */
  readonly buffer: ArrayBuffer
  /** Takes the lock of `rank`: it is free again when this process ends, however it ends. @throws code EBUSY where another one has it. */
  claim(rank: number): void
  /** Whether some other process (or this one) holds the lock of `rank`. */
  claimed(rank: number): boolean
  /** Removes the name; those who have mapped the segment go on using it. Doing so twice is no error. */
  unlink(): void
  /** Gives the locks back and closes the file; the memory stays as long as `buffer` is in use. */
  close(): void
}

/** Rounds over TCP among machines, by the gloo library. Every call runs on a thread of this object's own, in order. */
export interface GlooGroup {
  /** Every rank's bytes, by rank. @throws an Error with gloo's text; the group is of no more use then. */
  exchange(bytes: Uint8Array, timeoutMs: number): Promise<Uint8Array[]>
  /** As `exchange`, between two ranks. */
  exchangePair(peer: number, tag: number, bytes: Uint8Array, timeoutMs: number): Promise<Uint8Array>
  /**
   * Sum, min or max in place (op 0, 1, 2), ranks ascending. @throws also where the ranks' `signature`s (32 bits) differ, which must say type,
   * operation and length.
   */
  allReduce(array: ArrayBufferView, op: 0 | 1 | 2, timeoutMs: number, signature: number): Promise<void>
  /** Closes all connections; calls under way reject. */
  close(): void
}

/** What a GlooGroup throws. */
export interface GlooError extends Error {
  /** The ranks whose bytes had not come. */
  missing?: readonly number[]
  timedOut?: boolean
  /** Ranks brought different signatures. */
  mismatched?: boolean
}

/** What gloo needs to find its peers; the addon calls these on the JavaScript thread, while a thread of its own waits. */
export interface GlooStore {
  set(key: string, value: Uint8Array): Promise<void>
  get(key: string, timeoutMs: number): Promise<Uint8Array>
}

/** What runs the commands of a device: memory and queues, by number. */
export interface Engine {
  /** What the kernels are made for. */
  readonly kernels: string
  /**
   * Memory aligned to 64 bytes where it is native; `buffer` is null where JavaScript does not see it. @throws RangeError where there is none
   * left, Error where the device has failed.
   */
  allocate(byteLength: number): { id: number; buffer: ArrayBuffer | null }
  /** Memory of the system that commands may copy from and to, where `allocate` gives memory that JavaScript does not see. @throws as allocate */
  allocateHost?(byteLength: number): { id: number; buffer: ArrayBuffer }
  /** Takes the memory back once the commands that use it have run; `buffer` becomes empty. */
  free(id: number, buffer: ArrayBuffer | null): void
  /**
   * What queues (by id) are to run again and again: for each its commands, as `submit` takes them, but that waits are for commands of the same
   * run, counted from 1, and meetings are of one run each. @throws RangeError as submit
   */
  createProgram?(parts: readonly ProgramPart[]): EngineProgram
  /** A queue, with a thread of its own where it is native: on processor `core` of those this process may use, or on any (-1). */
  createQueue(core: number): EngineQueue
  /** Behind `close` of its queues, and where there is no memory of its left: waits for what runs and lets go of everything. */
  close?(): void
}

/** One whose memory JavaScript sees. */
export interface CpuEngine extends Engine {
  allocate(byteLength: number): { id: number; buffer: ArrayBuffer }
}

export interface EngineQueue {
  readonly id: number
  /** Hands over commands (the first `count` of `words`, as runtime/device/engine/commands.ts writes them). @throws RangeError for no commands. */
  submit(words: Float64Array, count: number): void
  /**
   * Copies bytes of JavaScript's memory into a block behind what was submitted, and returns once `bytes` may change; may wait for the device.
   * There where the engine has `allocateHost`.
   */
  write?(id: number, offset: number, bytes: Uint8Array): void
  /** Resolves with true once everything submitted has run, with false where the queue is closed before. @throws where the device has failed. */
  finish(): Promise<boolean>
  /** From now on kernels are timed, until `measured` gives what they took, summed by op and types. */
  measure(): void
  measured(): { op: number; types: readonly number[]; runs: number; nanoseconds: number }[]
  /** Ends it behind the command that it runs. */
  close(): void
}

/** Of a program: a queue, and the commands that it runs each time. */
export interface ProgramPart {
  queue: number
  words: Float64Array
  count: number
}

export interface EngineProgram {
  /** Hands the parts to their queues, whose commands so far are `bases`, by part. @throws Error where it has `ended` */
  launch(bases: readonly number[]): void
  /** Why it can be launched no more, where that may be: something that its commands use, and that is no memory, has ended. */
  ended?(): string | null
  /** Lets go of the memory that the commands use, once the runs under way have ended. */
  close(): void
}

/** A CUDA device that the driver sees. */
export interface CudaDeviceInfo {
  index: number
  name: string
  /** The device's own number, the same in all processes: `GPU-` and 32 hexadecimal digits in groups. */
  uuid: string
  /** Such as 9.0. */
  computeCapability: string
  memoryBytes: number
  multiprocessors: number
}

/**
 * Runs commands on one CUDA device; each queue is a stream. Where a launch or a stream fails, `finish` rejects from then on with the driver's text.
 * Used by the thread that made it.
 */
export interface CudaEngine extends Engine, CudaDeviceInfo {
  /** Names the machine: the same in all processes there, and nowhere else. */
  machine: string
  allocateHost(byteLength: number): { id: number; buffer: ArrayBuffer }
  /**
   * Pinned memory of the system, of zeroes, that kernels of this device use, and those of all devices of the machine that import it, whether they
   * reach each other or not. @throws RangeError where there is none left, Error where the driver does not take it.
   */
  allocateShared(byteLength: number): { id: number }
  /**
   * Names the devices that NVLink joins, of this machine and of others, which use memory of each other that `allocateBindable` gave; null where this
   * one is of no such domain.
   */
  domain(): string | null
  /** Whether one store of a kernel can reach memory of several devices, this one among them. */
  multicast(): Feature
  /**
   * A multicast to memory of so many devices, this one the first, of engines in any thread or process. The others import what `exportMemory` gives of it.
   * Commands store there once all have bound memory. @throws Error with the driver's text
   */
  createMulticast(byteLength: number, devices: number): { id: number }
  /** Memory of this device that others have by a handle, and that can be bound to a multicast of so many devices; 0 for none. @throws RangeError where there is none left, Error */
  allocateBindable(byteLength: number, devices: number): { id: number }
  /** Once all devices have imported the multicast; `free` of all that use the memory ends it. @throws Error with the driver's text */
  bindMulticast(multicast: number, memory: number): void
  /** What another rank needs to import the block, of this device's own or shared memory, in whatever thread or process of this machine, or of the domain. */
  exportMemory(id: number): Uint8Array<ArrayBuffer>
  /** Another rank's block, as one of this engine; `free` lets go of it. @throws where the devices cannot access each other, with the driver's text. */
  importMemory(exported: Uint8Array): { id: number; byteLength: number }
  /** Writes 32 bits at once, beside what the queues run. */
  poke(id: number, offset: number, word: number): void
  /** Sets bytes to `value` at once, and waits until that is done. */
  fill(id: number, offset: number, byteLength: number, value: number): void
  /** Bytes of the device that nobody has allocated. */
  freeBytes(): number
  /** Whether the device `index` can be accessed from this one. */
  canAccessPeer(index: number): boolean
}

/** What a call of NCCL came to: the message has the function, the rank, and NCCL's own text. */
export interface NcclError extends Error {
  /** NCCL's ncclResult_t; 8 where a deadline has passed. */
  result: number
  /** Of the communicator's ranks, the one that it concerns. */
  rank?: number
}

/** One rank's place in a group of NCCL. */
export interface NcclCommunicator {
  /** By which commands name it. */
  readonly number: number
  /** Resolves once all ranks have joined the group, of which this one is of use then. @throws NcclError */
  readonly joined: Promise<void>
  /** What has failed, from before the moment on when what is under way stops. */
  failure(): NcclError | null
  /** A part of the group, of which this becomes rank `rank`; all ranks call it, those without a part with color null. */
  split(
    options: { color: number | null; rank: number; size: number; timeoutMs: number },
    onFailure: (error: NcclError) => void,
  ): NcclCommunicator
  /** Has NCCL know a block of the engine; by a window where `symmetric`, which all ranks make alike. Gives its number. @throws NcclError */
  register(block: number, symmetric: boolean): number
  deregister(registration: number): void
  /** A reduction, for commands, that adds what ranks bring times their `scalar`, of NCCL's type number `type`. @throws NcclError */
  createScaledSum(scalar: number, type: number): number
  destroyScaledSum(reduction: number): void
  /** Ends it behind what is under way, without waiting here; at the latest after so many milliseconds. */
  close(timeoutMs: number): void
  /** Ends it at once: what is under way stops without a result. */
  abort(why: string): void
}

/** The NCCL library, which is loaded when it is first asked for something: features().nccl says whether it can be. */
export interface Nccl {
  /** As NCCL numbers its releases: 22703. @throws Error with what was tried */
  version(): number
  /** 128 bytes that all ranks of a new group are given. @throws NcclError */
  uniqueId(): Uint8Array<ArrayBuffer>
  /**
   * Has a thread of its own, on which it joins the group. `onFailure` is called at most once, when the communicator has failed by itself or a
   * collective has passed its deadline.
   */
  createCommunicator(
    options: { engine: CudaEngine; rank: number; size: number; id: Uint8Array; timeoutMs: number },
    onFailure: (error: NcclError) => void,
  ): NcclCommunicator
  /** The collectives that queues of this thread are given from now on wait for `end`. */
  begin(): void
  /** Gives them to NCCL as one group, in stream order, or forgets them. What one rank cannot do ends all these communicators. @throws NcclError */
  end(issue: boolean): void
  /**
   * Engines' `createProgram` for programs with collectives, all of this thread that have parts in them, in one go. A communicator ends the programs
   * that have collectives of it when it ends. @throws RangeError as createProgram, Error
   */
  createPrograms(all: readonly { engine: Engine; parts: readonly ProgramPart[] }[]): Required<EngineProgram>[]
}

export interface Addon {
  features(): Features
  /** Stores `epoch` as this member's and wakes who sleeps on it. */
  post(lane: LaneWords, epoch: number): void
  /**
   * Waits until the epoch of every member has reached `epoch` (wrapping differences). Looks for a few microseconds, then sleeps on a futex, at
   * most `microseconds` in all. `alarm` is the alarm word's value as the caller last saw it.
   */
  wait(lane: LaneWords, epoch: number, alarm: number, microseconds: number): WaitResult
  /** As `wait` for longer, on a thread of its own, so that the event loop goes on; at most `milliseconds`. */
  waitAsync(lane: LaneWords, epoch: number, alarm: number, milliseconds: number): Promise<WaitResult>
  /** Adds one to words[alarm] and wakes everybody who sleeps on a word of these lanes. */
  ring(words: Int32Array, alarm: number, lanes: readonly { at: number; members: number }[]): void
  /**
   * All-reduces over one lane. `memory` views, for each member, as much shared memory, aligned to 8 bytes. With `block` 0 it is the slots
   * through which arrays of private memory are carried: the first half of each for even epochs, the second for odd ones. With another
   * `block`, a number that is the same on all ranks, it is where the arrays themselves lie. `epoch[0]` is the last epoch that this
   * member has posted on the lane: whoever posts one keeps it right, and all reducers of a lane are given the same array.
   */
  createReducer(lane: LaneWords, memory: readonly ArrayBufferView[], epoch: Int32Array, block: number): Reduce
  /** out[i] = ((parts[0][i] + parts[1][i]) + parts[2][i]) + ..., float32, vectorised, in this order. Views of equal length. */
  sumFloat32(parts: readonly Float32Array[], out: Float32Array): void
  /** The CPU device's kernels; not there where the compiler was of a kind that they do not know. */
  createCpuEngine?(): CpuEngine
  /** What CUDA devices there are; features().cuda says why there are none. Not there where the addon is built without support of CUDA. */
  cudaDevices?(): CudaDeviceInfo[]
  /**
   * An engine on the CUDA device `index`. The variables RANKMESH_CUDA_PATH, RANKMESH_CUDA_KERNELS and RANKMESH_CUBLASLT_PATH name other files than
   * libcuda.so.1, the addon's rankmesh.fatbin and libcublasLt.so. @throws Error with the reason where it cannot be.
   */
  createCudaEngine?(index: number): CudaEngine
  /** There where `createCudaEngine` is. */
  readonly nccl?: Nccl
  /** A new segment of zeroes, readable by this user alone. @throws where the name is taken or the memory is not there. */
  createSegment(name: string, byteLength: number): Segment
  /** @throws an Error with code ENOENT where there is none (yet). */
  openSegment(name: string): Segment
  /** Connects to all peers through the store. `host` is the address to listen on. */
  connectGloo(
    options: { rank: number; size: number; host: string; prefix: string; timeoutMs: number },
    store: GlooStore,
  ): Promise<GlooGroup>
}

/**
 * Combines `array` over the lane's members, in place; `op` is 0 sum, 1 min, 2 max. Elements are combined in the order of members, so
 * all get the same bits; integers wrap, and a NaN makes min and max NaN. Blocks the thread for at most `microseconds` of waiting. After
 * EXPIRED or ALARMED, wait for epoch[0] and call again with the same array to go on. After MISMATCHED or ELSEWHERE the array is as it was,
 * one epoch has passed on all ranks, and the lane goes on to be of use.
 * @throws TypeError or RangeError for what cannot be reduced, before anything is posted.
 */
export type Reduce = (array: ReducibleArray, op: 0 | 1 | 2, signature: number, alarm: number, microseconds: number) => ReduceResult

export type ReducibleArray = Int32Array | Uint32Array | BigInt64Array | BigUint64Array | Float32Array | Float64Array
