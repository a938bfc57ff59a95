// Errors on their way between threads and processes: what is left of one, and the error of the same class made from it.
import * as errors from '../core/errors.ts'

export interface CarriedError {
  name: string
  message: string
  code: string | undefined
  rank: number | undefined
  stack: string | undefined
}

type Made = new (message: string, details?: errors.ErrorDetails) => errors.RankmeshError

/** Classes by code: one subclass each. */
const CLASSES: Record<errors.ErrorCode, Made> = {
  ERR_ARGUMENT: errors.ArgumentError,
  ERR_SHAPE: errors.ShapeError,
  ERR_DTYPE: errors.DTypeError,
  ERR_DEVICE: errors.DeviceError,
  ERR_COLLECTIVE_MISMATCH: errors.CollectiveMismatchError,
  ERR_TIMEOUT: errors.TimeoutError,
  ERR_RANK_FAILED: errors.RankFailedError,
  ERR_BACKEND_UNAVAILABLE: errors.BackendUnavailableError,
  ERR_MODEL_FORMAT: errors.ModelFormatError,
  ERR_OUT_OF_MEMORY: errors.OutOfMemoryError,
}

export const carriedError = {
  to(error: unknown): CarriedError {
    if (!(error instanceof Error))
      return { name: 'Error', message: errors.describe(error), code: undefined, rank: undefined, stack: undefined }
    const { name, message, stack } = error
    const { code, rank } = error as { code?: unknown; rank?: unknown }
    return {
      name,
      message,
      code: typeof code === 'string' ? code : undefined,
      rank: typeof rank === 'number' ? rank : undefined,
      stack,
    }
  },

  from({ name, message, code, rank, stack }: CarriedError): Error {
    const Class = CLASSES[code as errors.ErrorCode]
    const error = Class ? new Class(message, rank === undefined ? {} : { rank }) : new Error(message)
    if (!Class) error.name = name
    if (!Class && code !== undefined) Object.assign(error, { code })
    if (stack !== undefined) error.stack = stack
    return error
  },
}
