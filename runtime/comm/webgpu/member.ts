// Member: one rank's part in a WebGPU group.
import type { WebGpuDevice } from '../../device/webgpu/device.ts'
import type { Operand } from '../../device/webgpu/launch.ts'
import type { Run } from '../calls/run.ts'
import type { GroupMember, HoldAs, Shared } from '../member.ts'
import type { WebGpuGroup } from './group.ts'
import type { Scope } from './scope.ts'

export type Member = GroupMember<WebGpuDevice, WebGpuGroup, Scope, Operand>
export type Common = Shared<Scope, WebGpuGroup>
export type Hold = HoldAs<Operand>

export const run: Run<Member, Operand, Scope, 'later'> = (member, ...call) => member.run(...call)

export function operandsOf(payloads: readonly { x: Operand }[]): Operand[] {
  return payloads.map((p) => p.x)
}
