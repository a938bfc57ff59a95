// The recorder: ranks write commands into lanes; lanes are merged rank by rank into one stream; the stream becomes one submit and one map.
import { DeviceError, OutOfMemoryError, type RankmeshError } from '../../core/errors.ts'
import { roundUp } from '../../core/shape.ts'
import { type Command, type Copy, type MergedCommand, type MergedDispatch, type Range, type Read, single, together } from './commands.ts'
import type { BufferPool, PooledBuffer } from './pool.ts'
import type { Profiler } from './profiler.ts'

/** Bytes of the parameters of one dispatch: a uniform binding of its own at a dynamic offset. */
const UNIFORM_BYTES = 256
const SLICE_WORDS = 20
/** Commands after which a stream is submitted although nobody reads yet. */
const STREAM_LIMIT = 8192
const BIND_GROUP_LIMIT = 8192

export interface DeviceStats {
  submits: number
  /** Waits for the device: one per batch of reads. */
  maps: number
  dispatches: number
  bytesToDevice: number
  bytesToHost: number
}

export class Recorder {
  readonly stats: DeviceStats = { submits: 0, maps: 0, dispatches: 0, bytesToDevice: 0, bytesToHost: 0 }
  readonly #device: GPUDevice
  readonly #pool: BufferPool
  readonly #afterTurn: (task: () => void) => void
  readonly #lanes: Command[][] = []
  #stream: MergedCommand[] = []
  #flushAsked = false
  #uniforms: GPUBuffer | null = null
  readonly #bindGroups = new Map<string, GPUBindGroup>()
  readonly #staging: GPUBuffer[] = []
  readonly #pending = new Set<Read>()
  #failure: RankmeshError | null = null
  /** Set while kernels are to be timed. */
  profiler: Profiler | null = null

  constructor(device: GPUDevice, pool: BufferPool, afterTurn: (task: () => void) => void) {
    this.#device = device
    this.#pool = pool
    this.#afterTurn = afterTurn
    pool.onDestroy = () => this.#bindGroups.clear()
  }

  /** Opens a lane: the commands of one rank, in its own order. */
  addLane(): number {
    return this.#lanes.push([]) - 1
  }

  record(lane: number, command: Command): void {
    if (this.#failure) throw this.#failure
    ;(this.#lanes[lane] as Command[]).push(command)
  }

  /** Bytes of a range once everything recorded before has run. The device is asked when the current turn of the event loop ends. */
  read(lane: number, from: Range): Promise<Uint8Array<ArrayBuffer>> {
    return new Promise((resolve, reject) => {
      this.record(lane, { kind: 'read', from, readers: [{ resolve, reject }] })
      this.#askFlush()
    })
  }

  /** Moves the commands of these ranks into the stream; the same command of every rank becomes one. */
  merge(lanes: readonly number[]): void {
    const queues = lanes.map((lane) => (this.#lanes[lane] as Command[]).splice(0)).filter((queue) => queue.length > 0)
    const length = Math.max(0, ...queues.map((queue) => queue.length))
    for (let i = 0; i < length; i++) {
      const row = queues.filter((queue) => i < queue.length).map((queue) => queue[i] as Command)
      const merged = row.length > 1 ? together(row) : null
      if (merged) this.#stream.push(merged)
      else for (const command of row) this.#stream.push(single(command))
    }
  }

  /** Adds a command that serves several ranks, behind what was merged so far. */
  push(command: MergedCommand): void {
    if (this.#failure) throw this.#failure
    this.#stream.push(command)
    if (this.#stream.length >= STREAM_LIMIT) this.flush()
  }

  /** Encodes and submits all that is recorded. Results of reads arrive through their promises. */
  flush(): void {
    this.merge([...this.#lanes.keys()])
    const stream = this.#stream
    this.#stream = []
    if (stream.length === 0) return
    const reads = stream.filter((command) => command.kind === 'read')
    if (this.#failure) {
      for (const read of reads) for (const reader of read.readers) reader.reject(this.#failure)
      return
    }
    for (const read of reads) this.#pending.add(read)
    const device = this.#device
    device.pushErrorScope('out-of-memory')
    device.pushErrorScope('validation')
    const staging = this.#encode(stream, reads)
    const scopes = [device.popErrorScope(), device.popErrorScope()]
    this.stats.submits++
    this.#pool.recycle()
    this.#settle(reads, staging, scopes)
  }

  /** From now on every pending and later request fails with `error`. */
  fail(error: RankmeshError): void {
    this.#failure ??= error
    this.rejectPending(error)
    for (const lane of this.#lanes) for (const command of lane.splice(0)) rejectRead(command, error)
    for (const command of this.#stream.splice(0)) rejectRead(command, error)
  }

  /** Fails what is under way; later requests may still succeed. */
  rejectPending(error: RankmeshError): void {
    for (const read of this.#pending) rejectRead(read, error)
    this.#pending.clear()
  }

  #askFlush(): void {
    if (this.#flushAsked) return
    this.#flushAsked = true
    this.#afterTurn(() => {
      this.#flushAsked = false
      this.flush()
    })
  }

  #encode(stream: readonly MergedCommand[], reads: readonly Read[]): GPUBuffer | null {
    const device = this.#device
    const uniforms = this.#writeUniforms(stream)
    const staging = reads.length > 0 ? this.#takeStaging(reads.reduce((n, read) => n + paddedBytes(read.from), 0)) : null
    const encoder = device.createCommandEncoder()
    const temporary: GPUBuffer[] = []
    const touched = new Set<PooledBuffer>()
    let pass: GPUComputePassEncoder | null = null
    let bound: GPUComputePipeline | null = null
    let slot = 0
    let stagingAt = 0
    const endPass = (): void => {
      pass?.end()
      pass = null
      bound = null
    }
    for (const command of stream) {
      switch (command.kind) {
        case 'dispatch': {
          const timestampWrites = this.profiler?.next(command.kernel.label)
          if (timestampWrites) endPass()
          pass ??= encoder.beginComputePass(timestampWrites && { timestampWrites })
          if (bound !== command.kernel.pipeline) {
            bound = command.kernel.pipeline
            pass.setPipeline(bound)
          }
          pass.setBindGroup(0, this.#bindGroup(command, uniforms as GPUBuffer), [slot++ * UNIFORM_BYTES])
          pass.dispatchWorkgroups(command.grid[0], command.grid[1], command.ranks)
          for (const range of command.operands) touched.add(range.buffer)
          break
        }
        case 'upload': {
          this.stats.bytesToDevice += command.bytes.byteLength
          if (!touched.has(command.to.buffer)) {
            device.queue.writeBuffer(command.to.buffer.gpu, command.to.offset, command.bytes)
            break
          }
          endPass()
          const source = device.createBuffer({ size: command.bytes.byteLength, usage: GPUBufferUsage.COPY_SRC, mappedAtCreation: true })
          new Uint8Array(source.getMappedRange()).set(command.bytes)
          source.unmap()
          temporary.push(source)
          encoder.copyBufferToBuffer(source, 0, command.to.buffer.gpu, command.to.offset, command.bytes.byteLength)
          break
        }
        case 'copy':
          endPass()
          encodeCopy(encoder, command)
          touched.add(command.from.buffer).add(command.to.buffer)
          break
        case 'read': {
          endPass()
          const bytes = paddedBytes(command.from)
          encoder.copyBufferToBuffer(command.from.buffer.gpu, command.from.offset & ~3, staging as GPUBuffer, stagingAt, bytes)
          stagingAt += bytes
          touched.add(command.from.buffer)
        }
      }
    }
    endPass()
    const readTimes = this.profiler?.resolve(encoder)
    device.queue.submit([encoder.finish()])
    readTimes?.()
    for (const buffer of temporary) buffer.destroy()
    return staging
  }

  #writeUniforms(stream: readonly MergedCommand[]): GPUBuffer | null {
    const dispatches = stream.filter((command) => command.kind === 'dispatch')
    this.stats.dispatches += dispatches.length
    if (dispatches.length === 0) return null
    const bytes = dispatches.length * UNIFORM_BYTES
    if (!this.#uniforms || this.#uniforms.size < bytes) {
      this.#uniforms?.destroy()
      this.#bindGroups.clear()
      this.#uniforms = this.#device.createBuffer({
        size: 2 ** Math.ceil(Math.log2(Math.max(bytes, 65_536))),
        usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
        label: 'rankmesh parameters',
      })
    }
    const words = new Uint32Array(bytes / 4)
    dispatches.forEach((command, i) => {
      const at = (i * UNIFORM_BYTES) / 4
      command.operands.forEach((range, k) => {
        words[at + k] = range.offset % 256
        words[at + 8 + k] = command.strides[k] as number
      })
      words[at + 16] = command.own
      words[at + 17] = command.ownStep
      words.set(command.params, at + SLICE_WORDS)
    })
    this.#device.queue.writeBuffer(this.#uniforms, 0, words)
    return this.#uniforms
  }

  #bindGroup(command: MergedDispatch, uniforms: GPUBuffer): GPUBindGroup {
    const spans = command.operands.map((range, i) => span(range, (command.ranks - 1) * (command.strides[i] as number)))
    let key = command.kernel.access
    for (const { buffer, offset, size } of spans) key += `|${buffer.id},${offset},${size}`
    let group = this.#bindGroups.get(key)
    if (!group) {
      if (this.#bindGroups.size >= BIND_GROUP_LIMIT) this.#bindGroups.clear()
      group = this.#device.createBindGroup({
        layout: command.kernel.layout,
        entries: [
          { binding: 0, resource: { buffer: uniforms, size: UNIFORM_BYTES } },
          ...spans.map(({ buffer, offset, size }, i) => ({ binding: i + 1, resource: { buffer: buffer.gpu, offset, size } })),
        ],
      })
      this.#bindGroups.set(key, group)
    }
    return group
  }

  #takeStaging(bytes: number): GPUBuffer {
    const at = this.#staging.findIndex((buffer) => buffer.size >= bytes)
    if (at >= 0) return this.#staging.splice(at, 1)[0] as GPUBuffer
    const size = 2 ** Math.ceil(Math.log2(Math.max(bytes, 4096)))
    return this.#device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST, label: 'rankmesh staging' })
  }

  async #settle(reads: readonly Read[], staging: GPUBuffer | null, scopes: Promise<GPUError | null>[]): Promise<void> {
    try {
      if (staging) {
        this.stats.maps++
        const mapped = staging.mapAsync(GPUMapMode.READ)
        mapped.catch(() => {}) // awaited below, behind the scopes that tell why
        await throwScopeErrors(scopes)
        await mapped
        this.#deliver(reads, staging)
      } else await throwScopeErrors(scopes)
    } catch (cause) {
      const message = cause instanceof Error ? cause.message || cause.name : String(cause)
      const error =
        this.#failure ??
        (cause instanceof OutOfMemoryError || cause instanceof DeviceError
          ? cause
          : new DeviceError(`Reading from the device failed: ${message}`, { cause }))
      for (const read of reads) rejectRead(read, error)
      for (const read of reads) this.#pending.delete(read)
      if (reads.length === 0) this.rejectPending(error)
    }
  }

  #deliver(reads: readonly Read[], staging: GPUBuffer): void {
    const mapped = staging.getMappedRange()
    let at = 0
    for (const read of reads) {
      const from = at + (read.from.offset & 3)
      for (const reader of read.readers) reader.resolve(new Uint8Array(mapped.slice(from, from + read.from.byteLength)))
      this.#pending.delete(read)
      this.stats.bytesToHost += read.from.byteLength
      at += paddedBytes(read.from)
    }
    staging.unmap()
    if (staging.size <= 2 ** 24 && this.#staging.length < 8) this.#staging.push(staging)
    else staging.destroy()
  }
}

/** Where a binding begins and ends: from a multiple of 256 on, through the last rank's slice, whole quads. */
function span(range: Range, lastRank: number): { buffer: PooledBuffer; offset: number; size: number } {
  const offset = range.offset - (range.offset % 256)
  const end = Math.min(roundUp(range.offset + lastRank + Math.max(range.byteLength, 1), 16), range.buffer.size)
  return { buffer: range.buffer, offset, size: end - offset }
}

/** Bytes that a copy of whole words moves for a range of any alignment. */
function paddedBytes(range: Range): number {
  return roundUp((range.offset & 3) + range.byteLength, 4)
}

function encodeCopy(encoder: GPUCommandEncoder, { from, to }: Copy): void {
  encoder.copyBufferToBuffer(from.buffer.gpu, from.offset, to.buffer.gpu, to.offset, roundUp(from.byteLength, 4))
}

function rejectRead(command: Command | MergedCommand, error: RankmeshError): void {
  if (command.kind === 'read') for (const reader of command.readers) reader.reject(error)
}

async function throwScopeErrors(scopes: Promise<GPUError | null>[]): Promise<void> {
  const [validation, memory] = await Promise.all(scopes)
  if (memory) throw new OutOfMemoryError(`The device ran out of memory: ${memory.message}`)
  if (validation) throw new DeviceError(`The device refused a command: ${validation.message}`)
}
