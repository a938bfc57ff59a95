// Placements of a page: all ranks share its thread.
import { BackendUnavailableError } from '../core/errors.ts'
import type { Placements } from './placements.ts'

const refuse = (): never => {
  throw new BackendUnavailableError("In a page ranks share one thread; use placement 'local'")
}

export const placements: Placements = { role: () => null, discover: () => null, join: refuse, spawn: refuse }
