;; What both hostile guests share: memory, an allocator that never frees, access to the arguments.
;;
;; The arguments of `validate` and `map` come as one record in memory (canonical ABI, more than 16
;; flat values); these are the offsets used here:
;;   40 payloads (address, length)   48 payload-ends   136 selected
;; Addresses below 4,096 hold constants and results.

(memory (export "memory") 1)
(global $heap (mut i32) (i32.const 4096))

(data (i32.const 256) "no_thanks")           ;; 9
(data (i32.const 272) "malformed")           ;; 9
(data (i32.const 288) "the guest said so")   ;; 17
(data (i32.const 312) "a.b")                 ;; 3
(data (i32.const 320) "\ff\fe\fd")           ;; 3, not UTF-8
(data (i32.const 324) "\01\02\03")           ;; 3, control characters

(func $allocate (param $align i32) (param $size i32) (result i32)
  (local $at i32) (local $missing i32)
  (local.set $at
    (i32.and
      (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
      (i32.sub (i32.const 0) (local.get $align))))
  (global.set $heap (i32.add (local.get $at) (local.get $size)))
  (local.set $missing (i32.sub (global.get $heap) (i32.shl (memory.size) (i32.const 16))))
  (if (i32.gt_s (local.get $missing) (i32.const 0))
    (then
      (if
        (i32.eq
          (memory.grow
            (i32.shr_u (i32.add (local.get $missing) (i32.const 65535)) (i32.const 16)))
          (i32.const -1))
        (then (unreachable)))))
  (local.get $at))

(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (call $allocate (local.get 2) (local.get 3)))

(func $selected (param $arguments i32) (param $position i32) (result i32)
  (i32.load
    (i32.add (i32.load offset=136 (local.get $arguments))
      (i32.shl (local.get $position) (i32.const 2)))))

;; First byte of the payload of record $index, 0 where it is empty.
(func $letter (param $arguments i32) (param $index i32) (result i32)
  (local $start i32) (local $ends i32)
  (local.set $ends (i32.load offset=48 (local.get $arguments)))
  (if (local.get $index)
    (then
      (local.set $start
        (i32.load
          (i32.add (local.get $ends)
            (i32.shl (i32.sub (local.get $index) (i32.const 1)) (i32.const 2)))))))
  (if (result i32)
    (i32.eq (local.get $start)
      (i32.load
        (i32.add (local.get $ends) (i32.shl (local.get $index) (i32.const 2)))))
    (then (i32.const 0))
    (else
      (i32.load8_u
        (i32.add (i32.load offset=40 (local.get $arguments)) (local.get $start))))))

(func $endless (loop $again (br $again)))

;; Takes all the memory there is, page by page, then carries on.
(func $hoard
  (loop $again
    (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))))

(func $recurse (param i32) (result i32)
  (i32.add (call $recurse (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))

;; The rejection at $at: index, code, an absent field, reason.
(func $reject
  (param $at i32) (param $index i32)
  (param $code i32) (param $code_length i32) (param $reason i32) (param $reason_length i32)
  (i32.store (local.get $at) (local.get $index))
  (i32.store offset=4 (local.get $at) (local.get $code))
  (i32.store offset=8 (local.get $at) (local.get $code_length))
  (i32.store offset=12 (local.get $at) (i32.const 0))
  (i32.store offset=24 (local.get $at) (local.get $reason))
  (i32.store offset=28 (local.get $at) (local.get $reason_length)))

;; The misdeeds that a validator and a mapper have in common, by letter:
;;   L endless loop    T trap    Z endless recursion
;;   H hoards memory, then aborts as an allocator does    h hoards memory and carries on
(func $misbehave (param $letter i32)
  (if (i32.eq (local.get $letter) (i32.const 76)) (then (call $endless)))
  (if (i32.eq (local.get $letter) (i32.const 84)) (then (unreachable)))
  (if (i32.eq (local.get $letter) (i32.const 90))
    (then (drop (call $recurse (i32.const 0)))))
  (if (i32.eq (local.get $letter) (i32.const 72)) (then (call $hoard) (unreachable)))
  (if (i32.eq (local.get $letter) (i32.const 104)) (then (call $hoard))))
