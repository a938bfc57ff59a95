// Member: one rank's part in a group of ranks on one engine.
import type { Run } from '../calls/run.ts'
import { type QueuedMember, recordedBy } from '../queued.ts'
import type { Operand } from '../staged/group.ts'
import type { EngineGroup, Results } from './group.ts'

export type Member = QueuedMember<EngineGroup>

export const recorded: Run<Member, Operand, Results, 'now'> = recordedBy()
