// How each rank of a program ended, told apart from how launch ended.
import { performance } from 'node:perf_hooks'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { type LaunchOptions, launch, type RankContext } from '../../runtime/scheduler/launch.ts'

export interface Outcomes {
  /** What each rank threw; undefined for a rank that returned, or has not ended. */
  errors: (RankmeshError | undefined)[]
  /** What launch threw, wrapped, since it may be undefined itself. */
  thrown: { error: unknown } | null
  ms: number
}

/** Runs a program that is expected to fail. */
export async function outcomes(options: LaunchOptions, main: (context: RankContext) => Promise<unknown>): Promise<Outcomes> {
  const errors: (RankmeshError | undefined)[] = Array(options.ranks).fill(undefined)
  const start = performance.now()
  let thrown: Outcomes['thrown'] = null
  try {
    await launch(options, async (context) => {
      try {
        await main(context)
      } catch (error) {
        errors[context.rank] = error as RankmeshError
        throw error
      }
    })
  } catch (error) {
    thrown = { error }
  }
  return { errors, thrown, ms: performance.now() - start }
}

/** The error of a call that must fail. */
export async function errorOf(work: Promise<unknown>): Promise<RankmeshError> {
  try {
    await work
  } catch (error) {
    return error as RankmeshError
  }
  throw new Error('expected the call to fail, but it succeeded')
}

/** An error, by what tests compare. */
export function codes(errors: readonly (RankmeshError | undefined)[]): (string | undefined)[] {
  return errors.map((error) => error?.code ?? error?.name)
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))
export const never = (): Promise<never> => new Promise(() => {})
