// CpuDevice: one rank's view of the processor; where the addon is there, with a thread of its own.
import type { Engine } from '../../core/addon.ts'
import { EngineDevice, Processor } from '../engine/device.ts'
import { LoopEngine } from './loops.ts'

export class CpuDevice extends EngineDevice {
  /** A device over an engine; with null, over loops in TypeScript: right, and slow. */
  static open(engine: Engine | null, { name = 'cpu', pinned = false }: { name?: string; pinned?: boolean } = {}): CpuDevice {
    const runs = engine ?? new LoopEngine()
    const description = `CPU (${runs.kernels})`
    return new CpuDevice(new Processor(runs, { kind: 'cpu', name, description, software: runs instanceof LoopEngine, pinned }))
  }

  override view(): CpuDevice {
    return new CpuDevice(this.processor)
  }
}
