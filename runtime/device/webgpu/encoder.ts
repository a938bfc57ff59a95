// The encoder: a stream of commands becomes one submit, with the parameters, bind groups and staging memory that it needs.
import { roundUp } from '../../core/shape.ts'
import { type Copy, type MergedCommand, type MergedDispatch, paddedBytes, type Range, type Read, type Upload } from './commands.ts'
import type { PooledBuffer } from './pool.ts'
import type { Profiler } from './profiler.ts'

/** Bytes of the parameters of one dispatch: a uniform binding of its own at a dynamic offset. */
const UNIFORM_BYTES = 256
const SLICE_WORDS = 20
const BIND_GROUP_LIMIT = 8192
/** Staging memory up to this size is kept for the next read. */
const KEPT_STAGING_BYTES = 2 ** 24
const KEPT_STAGING_BUFFERS = 8

export interface DeviceStats {
  submits: number
  /** Waits for the device: one per batch of reads. */
  maps: number
  dispatches: number
  bytesToDevice: number
  bytesToHost: number
}

export class Encoder {
  readonly stats: DeviceStats = { submits: 0, maps: 0, dispatches: 0, bytesToDevice: 0, bytesToHost: 0 }
  /** Set while kernels are to be timed. */
  profiler: Profiler | null = null
  readonly #device: GPUDevice
  #uniforms: GPUBuffer | null = null
  readonly #bindGroups = new Map<string, GPUBindGroup>()
  readonly #staging: GPUBuffer[] = []

  constructor(device: GPUDevice) {
    this.#device = device
  }

  /** Encodes and submits. Results of reads go, one behind the other, to the staging buffer that is returned. */
  submit(stream: readonly MergedCommand[], reads: readonly Read[]): GPUBuffer | null {
    const device = this.#device
    const uniforms = this.#writeUniforms(stream)
    const staging = reads.length > 0 ? this.#takeStaging(stagingBytes(reads)) : null
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
          temporary.push(this.#encodeUpload(encoder, command))
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
    this.stats.submits++
    for (const buffer of temporary) buffer.destroy()
    return staging
  }

  /** Maps the staging buffer of a submit and gives each read's bytes to its readers. `check` may still refuse them. */
  async deliver(reads: readonly Read[], staging: GPUBuffer, check: () => Promise<void>): Promise<void> {
    this.stats.maps++
    const bytes = stagingBytes(reads)
    const mapping = staging.mapAsync(GPUMapMode.READ, 0, bytes)
    mapping.catch(() => {}) // awaited below, behind the check that tells why
    try {
      await check()
      await mapping
    } catch (error) {
      staging.destroy()
      throw error
    }
    const mapped = staging.getMappedRange(0, bytes)
    let at = 0
    for (const { from, readers } of reads) {
      const begin = at + (from.offset & 3)
      for (const reader of readers) reader.resolve(new Uint8Array(mapped.slice(begin, begin + from.byteLength)))
      this.stats.bytesToHost += from.byteLength
      at += paddedBytes(from)
    }
    staging.unmap()
    if (staging.size <= KEPT_STAGING_BYTES && this.#staging.length < KEPT_STAGING_BUFFERS) this.#staging.push(staging)
    else staging.destroy()
  }

  /** To be called when a pooled buffer is destroyed: nothing may keep a binding of it. */
  forgetBindings(): void {
    this.#bindGroups.clear()
  }

  dispose(): void {
    this.#bindGroups.clear()
    this.#uniforms?.destroy()
    for (const buffer of this.#staging.splice(0)) buffer.destroy()
  }

  #encodeUpload(encoder: GPUCommandEncoder, { to, bytes }: Upload): GPUBuffer {
    const source = this.#device.createBuffer({ size: bytes.byteLength, usage: GPUBufferUsage.COPY_SRC, mappedAtCreation: true })
    new Uint8Array(source.getMappedRange()).set(bytes)
    source.unmap()
    encoder.copyBufferToBuffer(source, 0, to.buffer.gpu, to.offset, bytes.byteLength)
    return source
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
    const size = bytes > KEPT_STAGING_BYTES ? bytes : 2 ** Math.ceil(Math.log2(Math.max(bytes, 4096)))
    return this.#device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST, label: 'rankmesh staging' })
  }
}

function stagingBytes(reads: readonly Read[]): number {
  return reads.reduce((n, read) => n + paddedBytes(read.from), 0)
}

/** Where a binding begins and ends: from a multiple of 256 on, through the last rank's slice, whole quads. */
export function span(range: Range, lastRank = 0): { buffer: PooledBuffer; offset: number; size: number } {
  const offset = range.offset - (range.offset % 256)
  const end = Math.min(roundUp(range.offset + lastRank + Math.max(range.byteLength, 1), 16), range.buffer.size)
  return { buffer: range.buffer, offset, size: end - offset }
}

function encodeCopy(encoder: GPUCommandEncoder, { from, to }: Copy): void {
  encoder.copyBufferToBuffer(from.buffer.gpu, from.offset, to.buffer.gpu, to.offset, roundUp(from.byteLength, 4))
}
