// The error classes of Rankmesh: one per stable code; each message says what was given, what was expected and what to do.

/** Codes are part of the public API and never change their meaning. */
export type ErrorCode =
  | 'ERR_ARGUMENT'
  | 'ERR_SHAPE'
  | 'ERR_DTYPE'
  | 'ERR_DEVICE'
  | 'ERR_COLLECTIVE_MISMATCH'
  | 'ERR_TIMEOUT'
  | 'ERR_RANK_FAILED'
  | 'ERR_BACKEND_UNAVAILABLE'
  | 'ERR_MODEL_FORMAT'
  | 'ERR_OUT_OF_MEMORY'

export interface ErrorDetails {
  /** The rank the error concerns, where one is to be named. */
  rank?: number
  /** The error this one was made from. */
  cause?: unknown
}

/** Base class: everything Rankmesh throws on purpose is one of these. */
export class RankmeshError extends Error {
  readonly code: ErrorCode
  readonly rank?: number

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause })
    this.name = new.target.name
    this.code = code
    if (details.rank !== undefined) this.rank = details.rank
  }
}

export class ArgumentError extends RankmeshError {
  constructor(message: string, details?: ErrorDetails) {
    super('ERR_ARGUMENT', message, details)
  }
}

export class ShapeError extends RankmeshError {
  constructor(message: string, details?: ErrorDetails) {
    super('ERR_SHAPE', message, details)
  }
}

export class DTypeError extends RankmeshError {
  constructor(message: string, details?: ErrorDetails) {
    super('ERR_DTYPE', message, details)
  }
}

export class DeviceError extends RankmeshError {
  constructor(message: string, details?: ErrorDetails) {
    super('ERR_DEVICE', message, details)
  }
}

/** Two ranks of one group called different collectives, or one collective with arguments that must agree and do not. */
export class CollectiveMismatchError extends RankmeshError {
  constructor(message: string, details?: ErrorDetails) {
    super('ERR_COLLECTIVE_MISMATCH', message, details)
  }
}

/** A wait ran past its deadline; the message names the ranks that had not arrived. */
export class TimeoutError extends RankmeshError {
  constructor(message: string, details?: ErrorDetails) {
    super('ERR_TIMEOUT', message, details)
  }
}

/** A peer threw, returned early or died; `rank` is the peer, `cause` what it threw. */
export class RankFailedError extends RankmeshError {
  constructor(message: string, details?: ErrorDetails) {
    super('ERR_RANK_FAILED', message, details)
  }
}

export class BackendUnavailableError extends RankmeshError {
  constructor(message: string, details?: ErrorDetails) {
    super('ERR_BACKEND_UNAVAILABLE', message, details)
  }
}

/** A model file is damaged, hostile or not of a kind that is read; the message names the tensor or the key. */
export class ModelFormatError extends RankmeshError {
  constructor(message: string, details?: ErrorDetails) {
    super('ERR_MODEL_FORMAT', message, details)
  }
}

export class OutOfMemoryError extends RankmeshError {
  constructor(message: string, details?: ErrorDetails) {
    super('ERR_OUT_OF_MEMORY', message, details)
  }
}

/** One sentence for every bad argument: `Expected <expected> for <name> but received <given>`. */
export function invalidArgument(name: string, expected: string, given: unknown): ArgumentError {
  return new ArgumentError(`Expected ${expected} for ${name} but received ${describe(given)}`)
}

/** A value as an error message shows it: short, on one line, with its type where that matters. */
export function describe(value: unknown): string {
  if (value === null || value === undefined || typeof value === 'boolean') return String(value)
  if (typeof value === 'number' || typeof value === 'bigint') return `${value} (${typeof value})`
  if (typeof value === 'string') return JSON.stringify(value.length > 80 ? `${value.slice(0, 77)}...` : value)
  if (typeof value === 'function') return `function ${value.name || '(anonymous)'}`
  if (Array.isArray(value)) return `[${value.slice(0, 8).map(String).join(', ')}${value.length > 8 ? ', ...' : ''}]`
  return value?.constructor?.name ?? typeof value
}

/** Throws unless `value` is an integer in [min, max]. */
export function checkInteger(name: string, value: unknown, min: number, max: number = Number.MAX_SAFE_INTEGER): void {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
    const range = max === Number.MAX_SAFE_INTEGER ? `an integer of at least ${min}` : `an integer in [${min}, ${max}]`
    throw invalidArgument(name, range, value)
  }
}
