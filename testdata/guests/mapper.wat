;; A mapper with one output, `texts (text String)`: each record gives one row with the first byte of
;; its payload, but for these letters:
;;   f no row    2 two rows    r rejects
;;   W a row that ends within its column    w a row that goes on after its column
;;   E an end beyond the bytes    O a row that ends one byte too early, into its neighbour's
;;   B ends that go back    C counts one row too many    R rejects and gives a row too
;;   G a row of two megabytes    P bytes outside its memory
;; and the letters of $misbehave in prelude.wat.

(data (i32.const 4) "\00\02\00\00\01\00\00\00")  ;; result of init: ok, one output at 512
(data (i32.const 512) "\58\02\00\00\05\00\00\00\10\02\00\00\01\00\00\00")  ;; name, columns at 528
(data (i32.const 528) "\60\02\00\00\04\00\00\00\68\02\00\00\06\00\00\00")  ;; name, type
(data (i32.const 600) "texts\00\00\00text\00\00\00\00String")

(func (export "sluice:module/map@0.1.0#init") (param i32 i32) (result i32)
  (i32.const 0))

(global $bytes (mut i32) (i32.const 0))    ;; first byte of the rows
(global $end (mut i32) (i32.const 0))      ;; address after the last
(global $ends (mut i32) (i32.const 0))     ;; first row end
(global $rows (mut i32) (i32.const 0))     ;; rows so far

(func $byte (param $value i32)
  (i32.store8 (global.get $end) (local.get $value))
  (global.set $end (i32.add (global.get $end) (i32.const 1))))

;; Ends a row here, or $lie bytes further on.
(func $row_end (param $lie i32)
  (i32.store
    (i32.add (global.get $ends) (i32.shl (global.get $rows) (i32.const 2)))
    (i32.add (i32.sub (global.get $end) (global.get $bytes)) (local.get $lie)))
  (global.set $rows (i32.add (global.get $rows) (i32.const 1))))

(func $row (param $letter i32) (param $lie i32)
  (call $byte (i32.const 1))
  (call $byte (local.get $letter))
  (call $row_end (local.get $lie)))

(func (export "sluice:module/map@0.1.0#map") (param $arguments i32) (result i32)
  (local $position i32) (local $count i32) (local $index i32) (local $letter i32)
  (local $given i32) (local $counts i32) (local $first i32) (local $next i32) (local $outside i32)
  (local.set $count (i32.load offset=140 (local.get $arguments)))
  (global.set $ends (call $allocate (i32.const 4) (i32.mul (i32.const 8) (local.get $count))))
  (local.set $counts (call $allocate (i32.const 4) (i32.mul (i32.const 4) (local.get $count))))
  (local.set $first (call $allocate (i32.const 4) (i32.mul (i32.const 32) (local.get $count))))
  (local.set $next (local.get $first))
  ;; Rows come last, with room for one that is gigantic.
  (global.set $bytes
    (call $allocate (i32.const 1) (i32.add (i32.const 2200000) (i32.mul (i32.const 4) (local.get $count)))))
  (global.set $end (global.get $bytes))
  (global.set $rows (i32.const 0))
  (block $done
    (loop $each
      (br_if $done (i32.eq (local.get $position) (local.get $count)))
      (local.set $index (call $selected (local.get $arguments) (local.get $position)))
      (local.set $letter (call $letter (local.get $arguments) (local.get $index)))
      (call $misbehave (local.get $letter))
      (local.set $given (global.get $rows))

      (block $mapped
        (br_if $mapped (i32.eq (local.get $letter) (i32.const 102))) ;; f
        (if (i32.eq (local.get $letter) (i32.const 114)) ;; r
          (then
            (call $reject (local.get $next) (local.get $index)
              (i32.const 256) (i32.const 9) (i32.const 288) (i32.const 17))
            (local.set $next (i32.add (local.get $next) (i32.const 32)))
            (br $mapped)))
        (if (i32.eq (local.get $letter) (i32.const 50)) ;; 2
          (then (call $row (local.get $letter) (i32.const 0))))
        (if (i32.eq (local.get $letter) (i32.const 87)) ;; W
          (then (call $byte (i32.const 9)) (call $row_end (i32.const 0)) (br $mapped)))
        (if (i32.eq (local.get $letter) (i32.const 119)) ;; w
          (then
            (call $byte (i32.const 0)) (call $byte (i32.const 0)) (call $row_end (i32.const 0))
            (br $mapped)))
        (if (i32.eq (local.get $letter) (i32.const 69)) ;; E
          (then (call $row (local.get $letter) (i32.const 1000000)) (br $mapped)))
        (if (i32.eq (local.get $letter) (i32.const 79)) ;; O
          (then (call $row (local.get $letter) (i32.const -1)) (br $mapped)))
        (if (i32.eq (local.get $letter) (i32.const 66)) ;; B
          (then
            (call $row (local.get $letter) (i32.const 0))
            (call $row (local.get $letter) (i32.const -3))
            (br $mapped)))
        (if (i32.eq (local.get $letter) (i32.const 71)) ;; G: 2,097,152 in LEB128
          (then
            (call $byte (i32.const 0x80)) (call $byte (i32.const 0x80))
            (call $byte (i32.const 0x80)) (call $byte (i32.const 1))
            (global.set $end (i32.add (global.get $end) (i32.const 2097152)))
            (call $row_end (i32.const 0))
            (br $mapped)))
        (if (i32.eq (local.get $letter) (i32.const 82)) ;; R
          (then
            (call $reject (local.get $next) (local.get $index)
              (i32.const 256) (i32.const 9) (i32.const 288) (i32.const 17))
            (local.set $next (i32.add (local.get $next) (i32.const 32)))))
        (if (i32.eq (local.get $letter) (i32.const 80)) ;; P
          (then (local.set $outside (i32.const 0x70000000))))
        (call $row (local.get $letter) (i32.const 0)))

      (local.set $given (i32.sub (global.get $rows) (local.get $given)))
      (if (i32.eq (local.get $letter) (i32.const 67)) ;; C
        (then (local.set $given (i32.add (local.get $given) (i32.const 1)))))
      (i32.store
        (i32.add (local.get $counts) (i32.shl (local.get $position) (i32.const 2)))
        (local.get $given))
      (local.set $position (i32.add (local.get $position) (i32.const 1)))
      (br $each)))
  ;; rows at 96, mapped at 64
  (i32.store (i32.const 96) (i32.add (global.get $bytes) (local.get $outside)))
  (i32.store (i32.const 100) (i32.sub (global.get $end) (global.get $bytes)))
  (i32.store (i32.const 104) (global.get $ends))
  (i32.store (i32.const 108) (global.get $rows))
  (i32.store (i32.const 112) (local.get $counts))
  (i32.store (i32.const 116) (local.get $count))
  (i32.store (i32.const 64) (i32.const 96))
  (i32.store (i32.const 68) (i32.const 1))
  (i32.store (i32.const 72) (local.get $first))
  (i32.store (i32.const 76)
    (i32.shr_u (i32.sub (local.get $next) (local.get $first)) (i32.const 5)))
  (i32.const 64))
