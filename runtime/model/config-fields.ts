// Checked reads of single values out of a parsed config.json; every refusal names the key, what it should be and what it is.
import { ModelFormatError } from '../core/errors.ts'
import { type JsonObject, own, show } from './json.ts'

export function badConfig(key: string, expected: string, given: unknown): ModelFormatError {
  return new ModelFormatError(`Expected ${expected} for ${key} of config.json but received ${show(given)}`)
}

export function isInteger(value: unknown, min: number, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max
}

/** An integer in [min, max]. `fallback` stands in where the key is absent or null; without one the key must be there. */
export function integer(json: JsonObject, key: string, min: number, max: number, fallback?: number): number {
  const value = own(json, key) ?? fallback
  if (!isInteger(value, min, max)) throw badConfig(key, `an integer in [${min}, ${max}]`, value)
  return value
}

/** A finite number for which `holds`; `expected` says that in words. */
export function number(json: JsonObject, key: string, holds: (x: number) => boolean, expected: string, fallback?: number): number {
  const value = own(json, key) ?? fallback
  if (typeof value !== 'number' || !Number.isFinite(value) || !holds(value)) throw badConfig(key, expected, value)
  return value
}

/** True or false; false where the key is absent or null. */
export function flag(json: JsonObject, key: string): boolean {
  const value = own(json, key) ?? false
  if (typeof value !== 'boolean') throw badConfig(key, 'true or false', value)
  return value
}
