// WebGpuComm: collectives among ranks of one thread on WebGPU devices. Ranks on one device reduce in its memory; devices exchange one
// partial each through host memory, and the same kernels finish on each of them.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { ArgumentError, checkInteger } from '../../core/errors.ts'
import { checkShape, resolveDim, type Shape, sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { WebGpuDevice } from '../../device/webgpu/device.ts'
import { copyBytes, type Operand, operand, rangeOf, storageOf } from '../../device/webgpu/launch.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import type { CommStats, DeviceComm, FusedNorm, ReduceOp } from '../device-comm.ts'
import type { LocalHostComm } from '../host.ts'
import { type MeetOptions, offerOf } from '../rendezvous.ts'
import {
  checkApart,
  checkFused,
  checkHere,
  checkMoved,
  checkParts,
  checkReduced,
  checkWritten,
  describeShape,
  describeTensor,
} from './checks.ts'
import { readAll, type Slices, upload } from './clusters.ts'
import { type Target, WebGpuGroup } from './group.ts'
import { fusedNorm, reduceSlices } from './kernels.ts'
import { interleave, scatterParts } from './moves.ts'
import type { Scope } from './scope.ts'

/** Takes a rank's tensor as an operand; its memory stays as long as the collective needs it, whatever becomes of the tensor. */
type Hold = (tensor: Tensor, use: Operand['use']) => Operand

interface FusedOperands {
  x: Operand
  residual: Operand
  weight: Operand
  bias: Operand | null
  out: Target | undefined
}

export class WebGpuComm implements DeviceComm {
  readonly rank: number
  readonly size: number
  readonly deviceRank: number
  readonly deviceSize: number
  readonly #host: LocalHostComm
  readonly #group: WebGpuGroup
  readonly #device: WebGpuDevice
  readonly #counts = { collectives: 0, fused: 0, bytes: 0 }

  private constructor(host: LocalHostComm, group: WebGpuGroup) {
    this.#host = host
    this.#group = group
    this.rank = host.rank
    this.size = host.size
    this.#device = group.devices[host.rank] as WebGpuDevice
    const { ranks } = group.home(host.rank)
    this.deviceRank = ranks.indexOf(host.rank)
    this.deviceSize = ranks.length
  }

  /** Every rank of `host` joins with its own view of its device. A device that is lost ends the group. */
  static async create(host: LocalHostComm, device: WebGpuDevice): Promise<WebGpuComm> {
    const group = await host.meet('createDeviceComm(webgpu)', { payload: device }, (devices) => {
      if (new Set(devices).size < devices.length) {
        throw new ArgumentError('Two ranks gave the same view of a device; give each rank its own, made with device.view()')
      }
      const group = new WebGpuGroup(devices)
      for (const { gpu } of group.clusters) host.watch((end) => gpu.onFailure(end))
      return devices.map(() => group)
    })
    return new WebGpuComm(host, group)
  }

  async allReduce(
    x: Tensor,
    { op = 'sum', out, ...options }: { op?: ReduceOp; out?: Tensor | undefined } & MeetOptions = {},
  ): Promise<Tensor> {
    const check = (): void => {
      checkReduced(this.#device, x, op)
      if (out !== undefined) checkWritten(this.#device, out, x, x.dtype, 'out')
    }
    if (this.size === 1 && out === undefined) return bypass(x, check)
    const call = `allReduce(${op}, ${describeTensor(x)}${out === undefined ? '' : ', out'})`
    const prepare = (hold: Hold): { x: Operand; out: Target | undefined } => {
      check()
      return { x: hold(x, 'r'), out: out && { tensor: out, operand: hold(out, 'w') } }
    }
    const result = await this.#run(call, prepare, options, async (payloads, scope) => {
      const partials = await this.#group.partials(scope, operandsOf(payloads), op)
      const targets = payloads.map((p) => p.out)
      return this.#group.spread(scope, x.shape, x.dtype, targets, (cluster, i, y) => {
        reduceSlices(cluster, partials[i] as Slices, y, op, this.size)
      })
    })
    return this.#counted(x, result)
  }

  async allReduceResidualBiasRMSNorm(args: FusedNorm, options: MeetOptions = {}): Promise<Tensor> {
    const given = args ?? ({} as FusedNorm)
    const { x, residual, weight, bias, eps = 1e-6, zeroCentered = false, out } = given
    const flags = `eps ${eps}${bias ? ', bias' : ''}${zeroCentered ? ', zeroCentered' : ''}${out ? ', out' : ''}`
    const call = `allReduceResidualBiasRMSNorm(${describeTensor(x)}, residual ${describeTensor(residual)}, ${flags})`
    const prepare = (hold: Hold): FusedOperands => {
      checkFused(this.#device, given, eps)
      const held = { x: hold(x, 'r'), residual: hold(residual, 'rw'), weight: hold(weight, 'r'), bias: bias ? hold(bias, 'r') : null }
      const target = out && { tensor: out, operand: hold(out, 'w') }
      if (target) checkApart(held.residual, target.operand, 'residual and out')
      return { ...held, out: target }
    }
    const result = await this.#run(call, prepare, options, async (payloads, scope) => {
      const n = x.shape.at(-1) as number
      const dims = { rows: n === 0 ? 0 : x.size / n, n, eps, zeroCentered }
      const partials = await this.#group.partials(scope, operandsOf(payloads), 'sum')
      const targets = payloads.map((p) => p.out)
      return this.#group.spread(scope, x.shape, residual.dtype, targets, (cluster, i, y) => {
        if (x.size === 0) return
        const [lead, ...others] = cluster.ranks.map((rank) => payloads[rank]) as [FusedOperands, ...FusedOperands[]]
        fusedNorm(scope, cluster, partials[i] as Slices, { ...lead, out: y }, dims)
        const from = lead.residual.range
        for (const { range: to } of others.map((other) => other.residual)) {
          if (to.buffer !== from.buffer || to.offset !== from.offset) copyBytes(cluster.sink, from, to, from.byteLength)
        }
      })
    })
    this.#counts.fused++
    return this.#counted(x, result)
  }

  async allGather(x: Tensor, { dim = -1, ...options }: { dim?: number } & MeetOptions = {}): Promise<Tensor> {
    const check = (): void => checkMoved(this.#device, x, dim)
    if (this.size === 1) return bypass(x, check)
    const result = await this.#run(`allGather(${describeTensor(x)}, dim ${dim})`, held(x, check), options, async (operands, scope) => {
      const slices = await this.#group.side(scope, operands, this.#group.clusters)
      return this.#group.spread(scope, widened(x.shape, dim, this.size), x.dtype, [], (cluster, i, y) => {
        interleave(cluster, slices[i] as Slices, y.range, x.shape, dim)
      })
    })
    return this.#counted(x, result)
  }

  async gather(x: Tensor, { dst = 0, dim = -1, ...options }: { dst?: number; dim?: number } & MeetOptions = {}): Promise<Tensor | null> {
    const check = (): void => {
      checkMoved(this.#device, x, dim)
      checkInteger('dst', dst, 0, this.size - 1)
    }
    if (this.size === 1) return bypass(x, check)
    const call = `gather(${describeTensor(x)}, dst ${dst}, dim ${dim})`
    const result = await this.#run<Operand, Tensor | null>(call, held(x, check), options, async (operands, scope) => {
      const cluster = this.#group.home(dst)
      const [slices] = (await this.#group.side(scope, operands, [cluster])) as [Slices]
      const shape = widened(x.shape, dim, this.size)
      const storage = cluster.gpu.pool.allocate(sizeOf(shape) * dtypeSize(x.dtype))
      const whole = this.#group.tensor(scope, dst, storage, shape, x.dtype)
      interleave(cluster, slices, rangeOf(cluster.gpu, whole), x.shape, dim)
      return operands.map((_, rank) => (rank === dst ? whole : null))
    })
    return this.#counted(x, result)
  }

  async reduceScatter(
    x: Tensor,
    { dim = -1, op = 'sum', ...options }: { dim?: number; op?: ReduceOp } & MeetOptions = {},
  ): Promise<Tensor> {
    const check = (): void => {
      checkReduced(this.#device, x, op)
      checkParts(x.shape, dim, this.size)
    }
    if (this.size === 1) return bypass(x, check)
    const call = `reduceScatter(${op}, ${describeTensor(x)}, dim ${dim})`
    const result = await this.#run(call, held(x, check), options, async (operands, scope) => {
      const partials = await this.#group.partials(scope, operands, op)
      const cut = { shape: x.shape, dtype: x.dtype, dim, size: this.size }
      const part = x.shape.map((n, i) => (i === resolveDim(dim, x.shape.length) ? n / this.size : n))
      const results: Tensor[] = []
      for (const [i, cluster] of this.#group.clusters.entries()) {
        const storages = cluster.gpu.pool.allocateSlices(cluster.ranks.length, sizeOf(part) * dtypeSize(x.dtype))
        for (const [k, rank] of cluster.ranks.entries()) {
          results[rank] = this.#group.tensor(scope, rank, storages[k] as GpuStorage, part, x.dtype)
        }
        if (x.size > 0) scatterParts(scope, cluster, partials[i] as Slices, storages, cut, op)
      }
      return results
    })
    return this.#counted(x, result)
  }

  async broadcast(x: Tensor, { src = 0, ...options }: { src?: number } & MeetOptions = {}): Promise<Tensor> {
    const check = (): void => {
      checkHere(this.#device, x, 'x')
      checkInteger('src', src, 0, this.size - 1)
    }
    if (this.size === 1) return bypass(x, check)
    const result = await this.#run(`broadcast(${describeTensor(x)}, src ${src})`, held(x, check), options, async (operands, scope) => {
      const { clusters } = this.#group
      const home = this.#group.home(src)
      const { range } = operands[src] as Operand
      const [bytes] = clusters.length > 1 && x.size > 0 ? await readAll([{ cluster: home, range }]) : []
      return this.#group.spread(scope, x.shape, x.dtype, [], (cluster, _, y) => {
        if (cluster === home) copyBytes(cluster.sink, range, y.range, range.byteLength)
        else if (bytes) upload(cluster, y.range, bytes)
      })
    })
    return this.#counted(this.rank === src ? x : null, result)
  }

  async barrier(options: MeetOptions = {}): Promise<void> {
    const nothing = async (all: null[]): Promise<null[]> => all
    await this.#run('barrier()', () => null, options, nothing)
  }

  async allocate(
    shape: Shape,
    { dtype = 'float32', shared = false, ...options }: { dtype?: DType; shared?: boolean } & MeetOptions = {},
  ): Promise<Tensor> {
    const prepare = (): number => {
      checkShape(shape)
      return sizeOf(shape) * dtypeSize(dtype)
    }
    const call = `allocate(${describeShape(shape)} ${dtype}${shared ? ', shared' : ''})`
    return this.#run(call, prepare, options, async ([bytes = 0], scope) => {
      const results: Tensor[] = []
      for (const { gpu, ranks } of this.#group.clusters) {
        const storages = gpu.pool.allocateSlices(shared ? 1 : ranks.length, bytes)
        for (const [k, rank] of ranks.entries()) {
          const storage = storages[shared ? 0 : k] as GpuStorage
          if (shared && k > 0) storage.retain()
          results[rank] = this.#group.tensor(scope, rank, storage, shape, dtype)
        }
      }
      return results
    })
  }

  async split(options: { color: number | null; key?: number }): Promise<WebGpuComm | null> {
    const host = await this.#host.split(options)
    return host && WebGpuComm.create(host, this.#device)
  }

  stats(): CommStats {
    const { submits, maps } = this.#device.stats
    return { ...this.#counts, submits, maps }
  }

  /**
   * Meets the other ranks and lets `action` run once for all. A rank whose own arguments are bad (`prepare` throws) joins to say so. The
   * operands' memory is held until the end, so that disposing a tensor meanwhile does no harm.
   */
  async #run<P, R>(
    call: string,
    prepare: (hold: Hold) => P,
    options: MeetOptions,
    action: (payloads: P[], scope: Scope) => Promise<R[]>,
  ): Promise<R> {
    const storages: GpuStorage[] = []
    const hold: Hold = (tensor, use) => {
      const storage = storageOf(this.#device.gpu, tensor)
      storage.retain()
      storages.push(storage)
      return operand(this.#device.gpu, tensor, use)
    }
    try {
      const offer = offerOf(() => prepare(hold))
      return await this.#host.meet(call, offer, (payloads) => this.#group.run((scope) => action(payloads, scope)), options)
    } finally {
      for (const storage of storages) storage.release()
    }
  }

  #counted<R>(x: Tensor | null, result: R): R {
    this.#counts.collectives++
    this.#counts.bytes += x?.byteLength ?? 0
    return result
  }
}

/** A group of one: the operand itself, once it is checked. */
function bypass(x: Tensor, check: () => void): Tensor {
  check()
  return x.share()
}

/** The payload of collectives with one operand. */
function held(x: Tensor, check: () => void): (hold: Hold) => Operand {
  return (hold) => {
    check()
    return hold(x, 'r')
  }
}

function operandsOf(payloads: readonly { x: Operand }[]): Operand[] {
  return payloads.map((p) => p.x)
}

/** The shape of all ranks' tensors concatenated along dim. */
function widened(shape: Shape, dim: number, ranks: number): number[] {
  const at = resolveDim(dim, shape.length)
  return shape.map((n, i) => (i === at ? n * ranks : n))
}
