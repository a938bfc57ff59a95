// Placements of Node: what a launcher or a call of launch has made of this thread or process, and how to start more.
import { isMainThread, workerData } from 'node:worker_threads'
import { discoverRank } from './discovery.ts'
import { join } from './join-node.ts'
import type { Placements } from './placements.ts'
import { childRole, type Orders, threadRole } from './role-node.ts'
import { spawn } from './spawn-node.ts'

/** What launch gave this thread or process to be; null where launch did not start it. */
function orders(): Orders | null {
  if (!isMainThread) return (workerData as { rankmesh?: Orders } | null)?.rankmesh ?? null
  const text = process.env.RANKMESH_ORDERS
  delete process.env.RANKMESH_ORDERS // for this process, not for those it starts
  return text && process.send ? (JSON.parse(text) as Orders) : null
}

const given = orders()
const role = given && (isMainThread ? childRole(given) : threadRole(given))

export const placements: Placements = {
  role: () => role,
  discover: () => (given || !isMainThread ? null : discoverRank(process.env)),
  join,
  spawn,
}
