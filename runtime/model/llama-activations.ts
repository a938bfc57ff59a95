// The activations that the layers of a Llama share: memory for the widest layer, seen in the widths of each.
import { slotsOf } from '../core/tree.ts'
import type { HeadNorms } from '../nn/attention.ts'
import { Workspace } from '../nn/workspace.ts'
import type { LayerShard, RankShard } from '../scheduler/plan.ts'
import type { PartsContext } from './llama-parts.ts'

export type LayerBuffers = 'projected' | 'reduced' | 'qkv' | 'q' | 'attended' | 'gateUp' | 'activated'
type UnusedBuffers = 'keys' | 'values'

/** Which shards have one size on all ranks, and so lie in symmetric memory. */
export interface Alike {
  attention: boolean
  mlp: boolean
  vocab: boolean
}

/** What one layer works in. */
interface LayerMemory {
  workspace: Workspace<LayerBuffers>
  /** What normed heads need besides. */
  norms: Pick<HeadNorms, 'scratch' | 'unused'> | undefined
}

type Widths = Record<LayerBuffers | 'normed' | UnusedBuffers, number>

export class LayerActivations implements Disposable {
  readonly #whole: LayerMemory
  readonly #widths: readonly Widths[]
  /** Layers of equal widths have the same views; by those widths. */
  readonly #narrowed = new Map<string, LayerMemory>()

  private constructor(whole: LayerMemory, widths: readonly Widths[]) {
    this.#whole = whole
    this.#widths = widths
  }

  /** Collective. */
  static async create(context: PartsContext, { layers }: RankShard, alike: Alike, maxTokens: number): Promise<LayerActivations> {
    const { comm, device, config, capacity } = context
    const widths = layers.map((shard, layer) => widthsOf(context, shard, layer))
    const widest = (name: keyof Widths): { width: number } => ({ width: Math.max(...widths.map((layer) => layer[name])) })
    const attention = { own: alike.attention ? undefined : device }
    const mlp = { own: alike.mlp ? undefined : device }
    const workspace = await Workspace.create<LayerBuffers>(comm, maxTokens, {
      projected: widest('projected'),
      reduced: widest('reduced'),
      qkv: { ...widest('qkv'), ...attention },
      q: { ...widest('q'), ...attention },
      attended: { ...widest('attended'), ...attention },
      gateUp: { ...widest('gateUp'), ...mlp },
      activated: { ...widest('activated'), ...mlp },
    })
    if (!config.qkNorm) return new LayerActivations({ workspace, norms: undefined }, widths)
    const scratch = await Workspace.create<'normed'>(comm, maxTokens, { normed: { ...widest('normed'), ...attention } })
    const unused = await Workspace.create<UnusedBuffers>(comm, capacity, {
      keys: { ...widest('keys'), ...attention },
      values: { ...widest('values'), ...attention },
    })
    return new LayerActivations({ workspace, norms: { scratch, unused } }, widths)
  }

  /** The memory of a layer; it belongs to this object. */
  of(layer: number): LayerMemory {
    const widths = this.#widths[layer] as Widths
    const key = JSON.stringify(widths)
    const known = this.#narrowed.get(key)
    if (known) return known
    const { workspace, norms } = this.#whole
    const { normed, keys, values, ...own } = widths
    const narrowed = norms && { scratch: norms.scratch.narrowed({ normed }), unused: norms.unused.narrowed({ keys, values }) }
    const memory = { workspace: workspace.narrowed(own), norms: narrowed }
    this.#narrowed.set(key, memory)
    return memory
  }

  [Symbol.dispose](): void {
    for (const { workspace, norms } of [...this.#narrowed.values(), this.#whole]) {
      workspace.dispose()
      norms?.scratch.dispose()
      norms?.unused.dispose()
    }
  }
}

/** Elements of a row of each buffer. A sum by the tree has a row for every subtree of the rank that has most. */
function widthsOf({ config, cuts }: PartsContext, { heads, kvHeads, mlp }: LayerShard, layer: number): Widths {
  const { hiddenSize: hidden, headDim: dim } = config
  const { out, down } = cuts?.layers[layer] ?? {}
  const [q, kv] = [heads.count * dim, kvHeads.count * dim]
  return {
    projected: hidden * (out ? slotsOf(out.spans) : 1),
    reduced: hidden * (down ? slotsOf(down.spans) : 1),
    qkv: q + 2 * kv,
    q,
    attended: q,
    gateUp: 2 * mlp.count,
    activated: mlp.count,
    normed: q + 2 * kv,
    keys: kv,
    values: kv,
  }
}
